"""Does the image help the transcript? A fused adapter measured with both, either and a wrong image, clean and in noise.

Held-out rows of the test split; pink noise at 10 and 0 dB, drawn three times for each clip; 95 % intervals by paired
bootstrap over groups. Beside it, for orientation, a transcription adapter on the same clips with the same noise.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_file import update_section

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.languages import display_name
from kauli.models.metrics import NOISE_LEVELS, noise_prefix
from kauli.models.paths import default_storage
from kauli.models.tasks import load_served
from kauli.training.augment.audio import with_noise
from kauli.training.augment.base import view_seed
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.fusion import NOISE_SEEDS, evaluate_fusion
from kauli.training.evaluation.intervals import interval
from kauli.training.evaluation.request import MAX_CHARS_PER_SECOND, request_of
from kauli.training.evaluation.results import EvalResult, Scores, bracket, format_value, paired
from kauli.training.evaluation.scorers import Tally, score_answers
from kauli.training.evaluation.transcribe import ANSWERING, transcribe
from kauli.training.features.fusion import fused_rows

PREFIXES = ("", *(noise_prefix(level) for level in NOISE_LEVELS))
SYSTEMS = {
    "image and audio": None, "audio alone": "no_image", "audio, another row's image": "wrong_image",
    "image alone": "no_audio",
}  # fmt: skip


def table(result: EvalResult, tag: str, transcripts: dict[str, Tally]) -> list[str]:
    """Markdown lines for one language."""
    names = ["CER", *(f"CER at {level} dB" for level in NOISE_LEVELS)]
    lines = [
        f"| {display_name(tag)} | {' | '.join(names)} | bits per byte | chrF |",
        "| --- |" + " --- |" * (len(names) + 2),
    ]
    metrics = [*(prefix + "cer" for prefix in PREFIXES), "bits_per_byte", "chrf"]
    totals: dict[str, Scores] = {name: result.baselines[key] if key else result.scores for name, key in SYSTEMS.items()}
    for name, scores in totals.items():
        found = scores.total([tag])
        cells = [
            f"{format_value(one, found[one].value())} {bracket(one, interval(found[one].sums, found[one].finish))}"
            if one in found else ""
            for one in metrics
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    if transcripts:
        cells = [
            f"{format_value('cer', one.value())} {bracket('cer', interval(one.sums, one.finish))}"
            for one in transcripts.values()
        ]
        lines.append(f"| the audio by a transcription adapter | {' | '.join(cells)} | | |")
    lines.append("")
    for key, what in (("no_image", "than the audio alone"), ("wrong_image", "than with another row's image")):
        ours, theirs = result.scores.total([tag]), result.baselines[key].total([tag])
        changes = []
        for prefix, where in zip(PREFIXES, ("clean", *(f"{level} dB" for level in NOISE_LEVELS)), strict=True):
            change = paired(ours[prefix + "cer"], theirs[prefix + "cer"], result.seed)
            changes.append(f"{where} {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]")
        lines.append(f"CER with the image {what}: {'; '.join(changes)}.")
    return lines


def transcribed(options: Any, languages: Sequence[str], max_chars_per_second: float) -> dict[str, dict[str, Tally]]:
    """Language -> prefix -> CER of the transcription adapter, for its languages."""
    if not options.transcriber:
        return {}
    registry = Registry(options.transcriber_storage or options.storage)
    card = registry.card(options.transcriber)
    task = load_served("transcribe", find_base(card.base.name, task="transcribe"))
    task.add_adapter("ours", registry.fetch(options.transcriber))
    data = load_data("starter", languages)
    out: dict[str, dict[str, Tally]] = {}
    for tag in languages:
        if tag not in card.language:
            continue
        rows = fused_rows(data, "test", [tag], None, max_chars_per_second).rows
        out[tag] = {}
        for prefix, level in zip(PREFIXES, (None, *NOISE_LEVELS), strict=True):
            asked = []
            for draw in range(1 if level is None else NOISE_SEEDS):
                for row in rows:
                    samples = torch.as_tensor(np.asarray(row["samples"]))
                    if level is not None:
                        samples = with_noise(samples, level, view_seed(row["audio_key"], draw))
                    asked.append({**row, "samples": samples.numpy()})
            texts = transcribe(task, asked, "ours")
            out[tag][prefix] = score_answers(texts, [row["text"] for row in asked], asked, ANSWERING.kinds)["cer"]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapter", default="describe-be-fused")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--language", help="one of the adapter's; by default all")
    parser.add_argument("--transcriber", help="a transcription adapter to stand beside it")
    parser.add_argument("--transcriber-storage", help="where that lies; by default in the same storage")
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[2] / "RESULTS.md")
    options = parser.parse_args()
    registry = Registry(options.storage)
    card = registry.card(options.adapter)
    languages = [options.language] if options.language else card.language
    base = find_base(card.base.name, task=card.task, allow_noncommercial=True)
    dataset = load_data(card.data.name if card.data else "starter", card.language)
    request = replace(request_of(card, registry.fetch(options.adapter), base, dataset), languages=tuple(languages))
    result = evaluate_fusion(request)
    transcripts = transcribed(options, result.languages, request.max_chars_per_second or MAX_CHARS_PER_SECOND)
    training = card.training
    assert training is not None
    lines = [
        f"`{card.spec}` on {result.base}: {result.examples} held-out rows in {result.groups} groups; trained for "
        f"{training.seconds / 60:.0f} minutes, {training.steps} steps on {training.machine} (one thread), "
        f"seed {training.seed}; "
        f"data {result.data['sha256'][:12]}. Command: `python tests/bench/fused.py`.",
    ]
    for tag in result.languages:
        lines += ["", *table(result, tag, transcripts.get(tag, {}))]
    lines += ["", "| language | reference | image and audio | audio alone |", "| --- | --- | --- | --- |"]
    for sample in result.samples:
        if sample.language == result.languages[0]:
            alone = sample.prompt.partition("(audio alone: ")[2].removesuffix(")")
            where = sample.source.partition(", ")[2] or "clean"
            lines.append(f"| {sample.language}, {where} | {sample.reference} | {sample.adapter} | {alone} |")
    text = "\n".join(lines[: lines.index("| --- | --- | --- | --- |") + 25])
    print(text)
    update_section(options.results, f"fused-{card.name}", text)


if __name__ == "__main__":
    main()
