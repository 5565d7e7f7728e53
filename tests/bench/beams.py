"""Greedy transcripts beside beams, and beams with a language model of the training texts; and how fast each is.

    python tests/bench/beams.py --adapter transcribe-be
    python tests/bench/beams.py --adapter transcribe-be --test

Weight and bonus are chosen by the character error rate on validation clips. With `--test` the choice is measured on
the test clips. Texts of the language model are those of the training split, whatever their medium; one that also is
in another split is left out.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from kauli.deploy.cli.terminal import table
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.paths import default_storage
from kauli.models.requests import BeamSearch
from kauli.models.speech.token_lm import TokenModel, fit
from kauli.models.speech.whisper import WhisperTask
from kauli.models.tasks import load_served
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.results import bracket, paired
from kauli.training.evaluation.rows import whole_groups
from kauli.training.evaluation.scorers import Tally, clean, score_answers
from kauli.training.evaluation.systems import generate
from kauli.training.evaluation.transcribe import request_for
from kauli.training.features.audio import audio_rows
from kauli.training.features.language_texts import language_texts

KEY = "adapter"


def fitted(task: WhisperTask, texts: Sequence[str], language: str, order: int) -> TokenModel:
    """The language model of these texts in the tokens of the base."""
    tokens = [task.tokenizer(" " + text, add_special_tokens=False).input_ids for text in texts]
    vocabulary = int(task.model.config.vocab_size)
    return fit(
        tokens, vocabulary=vocabulary, end=task.end, order=order, language=language, tokenizer=task.tokenizer_sha256
    )


def measure(task: WhisperTask, rows: Sequence[Any], adapter: str | None, beam: BeamSearch | None) -> tuple[Any, float]:
    """The error rates, and the clips a second."""
    requests = [replace(request_for(row), beam=beam) for row in rows]
    began = time.monotonic()
    texts = [clean(text) for text in generate(task, requests, [adapter] * len(rows))]
    speed = len(rows) / (time.monotonic() - began)
    return score_answers(texts, [row["text"] for row in rows], rows, ("transcript",)), speed


def main() -> None:
    """Print a line a way of decoding: error rates, the differences from greedy with intervals, and speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", help="NAME or NAME@VERSION of the task transcribe; without, the base alone")
    parser.add_argument("--base", default="whisper-base")
    parser.add_argument("--data", default="starter")
    parser.add_argument("--language", default="be")
    parser.add_argument("--beams", type=int, default=4)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--clips", type=int, default=1000, help="whole groups of about as many clips of a split")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.1, 0.2, 0.4])
    parser.add_argument("--bonuses", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--storage", default=default_storage())
    options = parser.parse_args()
    dataset = load_data(options.data, [options.language])
    task: WhisperTask = load_served("transcribe", find_base(options.base, task="transcribe"), device="cpu")
    key = None
    if options.adapter:
        registry = Registry(options.storage)
        task.add_adapter(KEY, registry.fetch(registry.card(options.adapter).spec))
        key = KEY
    splits = {
        split: whole_groups(audio_rows(dataset, split, [options.language], 25.0).rows, options.clips)
        for split in ("validation", "test")
    }
    texts = language_texts(dataset, options.language)
    model = fitted(task, texts, options.language, options.order)
    grams = sum(map(len, model.keys))
    print(f"{len(texts)} texts, {grams} n-grams, {torch.get_num_threads()} threads, {machine()}", flush=True)
    found: dict[str, tuple[dict[str, Tally], float]] = {}
    rows = splits["validation"]
    ways: dict[str, BeamSearch | None] = {"greedy": None, "beams": BeamSearch(options.beams)}
    for weight, bonus in product(options.weights, options.bonuses):
        ways[f"weight {weight:g} bonus {bonus:g}"] = BeamSearch(options.beams, model, weight, bonus)
    for name, beam in ways.items():
        found[name] = measure(task, rows, key, beam)
    report(f"validation, {len(rows)} clips", found)
    if options.test:
        best = min(list(ways)[2:], key=lambda name: found[name][0]["cer"].value())
        chosen = ["greedy", "beams", best]
        measured = {name: measure(task, splits["test"], key, ways[name]) for name in chosen}
        report(f"test, {len(splits['test'])} clips", measured)


def report(title: str, found: dict[str, tuple[dict[str, Tally], float]]) -> None:
    """Print a table; every line is compared with the line of greedy."""
    greedy, pace = found["greedy"]
    lines = []
    for name, (tallies, speed) in found.items():
        line = {"decoding": name, "speed": f"{speed:.2f} clips/s, {speed / pace:.2f}x"}
        for metric in ("cer", "wer"):
            change = paired(tallies[metric], greedy[metric])
            line[metric] = f"{tallies[metric].value():.3f}"
            line[f"{metric} against greedy"] = f"{change.value:+.3f} {bracket(metric, change, sign=True)}"
        lines.append(line)
    print(title)
    print(table(lines, list(lines[0])), flush=True)


if __name__ == "__main__":
    main()
