"""Whether certificates hold on test rows: how often the bound does, whether the expected score follows the true one.

    python tests/bench/certificates.py text-sw translate-am transcribe-be --results RESULTS.md

A certificate is learned on validation rows, as `kauli certify` does, and judged on rows of the test split. Then it is
learned on one source alone (--learned), and batches of 16 answers of that source and of all others are asked for their
doubt; for speech the others are the same clips in noise as loud as they are.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from results_file import update_section
from scipy.stats import spearmanr

from kauli.models.adapters.certificate import Certificate
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.paths import default_storage
from kauli.models.tasks import task_of
from kauli.training.card import machine
from kauli.training.certify import ROWS
from kauli.training.data.dataset import load_data
from kauli.training.evaluation import transcribe
from kauli.training.evaluation.certify import Answered, fit_certificate
from kauli.training.evaluation.request import EvalRequest, request_of
from kauli.training.tasks.table import task_of_card

BATCH, BATCHES = 16, 200
HEAD = ("adapter", "answers in", "validation rows", "test rows", "bound holds", "rank correlation",
        "expected", "true", "doubted: same source", "doubted: other")  # fmt: skip


def answers_of(card: Any, request: EvalRequest, split: str) -> list[Answered]:
    """Rows of a split, answered."""
    return task_of_card(card).answered(replace(request, split=split))


def in_noise(request: EvalRequest) -> list[Answered]:
    """Test clips under white noise that is as loud as they are, transcribed."""
    plain = transcribe.transcribed_rows

    def noisy(asked: EvalRequest) -> Any:
        found, draw = plain(asked), np.random.default_rng(0)
        rows = []
        for row in found.rows:
            samples = np.asarray(row["samples"])
            noise = draw.normal(0, float(np.sqrt((samples**2).mean())), len(samples)).astype(np.float32)
            rows.append({**row, "samples": samples + noise})
        return replace(found, rows=rows)

    transcribe.transcribed_rows = noisy
    try:
        return transcribe.answered_transcripts(replace(request, split="test"))
    finally:
        transcribe.transcribed_rows = plain


def doubted(certificate: Certificate, answers: Sequence[Answered], seed: int = 0) -> str:
    """The share of random batches that are doubted, in words."""
    if len(answers) < BATCH:
        return "too few"
    draw = np.random.default_rng(seed)
    estimates = [certificate.assess(one.figures) for one in answers]
    batches = [[estimates[at] for at in draw.choice(len(estimates), BATCH, replace=False)] for _ in range(BATCHES)]
    return f"{sum(certificate.doubt(one) is not None for one in batches) / BATCHES:.0%}"


def lines_of(spec: str, storage: str, rows: int, learned: str) -> list[list[str]]:
    """A line for each language of an adapter's answers."""
    registry = Registry(storage)
    card = registry.card(spec)
    metric = task_of(card.task, str(card.method.get("kind", ""))).certified
    base = find_base(card.base.name, task=card.task, allow_noncommercial=True)
    assert card.data is not None
    request = request_of(card, registry.fetch(card.spec), base, load_data(card.data.name, card.language))
    request = replace(request, limit=rows)
    validation, test = (answers_of(card, request, split) for split in ("validation", "test"))
    noisy = in_noise(request) if card.task == "transcribe" else []
    lines = []
    for tag in sorted({one.language for one in validation}):
        mine, later = ([one for one in found if one.language == tag] for found in (validation, test))
        certificate = fit_certificate(mine, metric)
        if certificate is None:
            lines.append([card.spec, tag, str(len(mine)), str(len(later)), "too few rows", *[""] * 5])
            continue
        estimates = [certificate.assess(one.figures) for one in later]
        held = [certificate.sign * (one.score - found.bound) >= 0 for one, found in zip(later, estimates, strict=True)]
        expected, true = [one.expected for one in estimates], [one.score for one in later]
        narrow = certificate if noisy else fit_certificate([one for one in mine if one.source == learned], metric)
        same = [one for one in later if noisy or one.source == learned]
        other = noisy or [one for one in later if one.source != learned]
        judged = ["", ""] if narrow is None else [doubted(narrow, same), doubted(narrow, other)]
        lines.append([
            card.spec, tag, str(len(mine)), str(len(later)), f"{np.mean(held):.1%}",
            f"{spearmanr(expected, true).statistic:.2f}", f"{np.mean(expected):.3g}", f"{np.mean(true):.3g}", *judged,
        ])  # fmt: skip
        print(" | ".join(lines[-1]), flush=True)
    return lines


def main() -> None:
    """Print the table, and write it to a section of a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--learned", default="libreoffice", help="the source of the narrow certificates")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--results", type=Path, help="write the section `certificates` of this file")
    options = parser.parse_args()
    lines = [line for one in options.adapters for line in lines_of(one, options.storage, options.rows, options.learned)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in (HEAD, ["---"] * len(HEAD), *lines))
    text = f"Batches of {BATCH}; the narrow certificates are learned on {options.learned}. {machine()}.\n\n{table}"
    print(text)
    if options.results is not None:
        update_section(options.results, "certificates", f"### Certificates\n\n{text}")


if __name__ == "__main__":
    main()
