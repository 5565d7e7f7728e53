"""Training throughput beside a plain Hugging Face Trainer with peft, in one process, in turn (`make bench`).

The same base, examples, LoRA targets (r=8 on q/v) and threads; a round is one pass of each over the same examples,
and the figure is loss tokens (those of answers) per second. The machine is noisy: read the ratios, taken round by
round, and their spread.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from plain_script import QV, Clock, examples_of, lora, trainer_of
from results_file import update_section

from kauli.models.bases.find import find_base
from kauli.models.engine.packing import Document
from kauli.models.text.training import TrainableText
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe_file import parse_recipe
from kauli.training.tasks.base import Examples
from kauli.training.tasks.text import AnswerRecipe, TextLearner


def ours(recipe: AnswerRecipe, rows: list[dict[str, object]], folder: Path) -> Loop:
    """Our loop over the rows, ready to step."""
    task = TrainableText.load(find_base(recipe.base), device="cpu")
    return Loop(TextLearner(task, recipe, Examples(rows, rows[:1], (), "bench")), recipe, "bench", LocalSession(folder))


def one_pass(loop: Loop) -> float:
    """Seconds of one epoch of our loop."""
    begin = time.monotonic()
    for step in loop.plan.epoch(0):
        loop.step(step)
    return time.monotonic() - begin


def plain_pass(base: Path, documents: list[Document], end: int, form: str, folder: Path) -> float:
    """Seconds of one epoch of the plain script's Trainer, from the beginning of training to its last step."""
    examples = examples_of([[document.tokens, document.answer_start] for document in documents], form)
    steps = len(examples) if form == "packed" else -(-len(examples) // 8)
    clock = Clock(None)
    trainer_of(lora(base, QV), examples, end, form, steps, 5e-4, 0, clock, folder).train()
    return clock.ends[-1] - clock.begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default="smollm2-135m-q4")
    parser.add_argument("--language", default="sw")
    parser.add_argument("--examples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--results", type=Path, help="a file such as RESULTS.md, whose section is written anew")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = parse_recipe(
        {
            "name": "bench",
            "base": options.base,
            "language": options.language,
            "method": {"kind": "lora", "rank": 8, "targets": QV},
            "train": {"batch_tokens": 1024},
        },
        "bench",
    )
    assert isinstance(recipe, AnswerRecipe)
    rows = [row for row in load_data("starter", [options.language]).rows(split="train") if row["text"]]
    # A third of paragraphs: names alone are so alike in length that there is little to pad or to pack.
    paragraphs = [row for row in rows if row["source"] == "udhr"]
    names = [row for row in rows if row["source"] != "udhr"]
    draw = random.Random(0)
    rows = draw.sample(paragraphs, min(len(paragraphs), options.examples // 3))
    rows += draw.sample(names, options.examples - len(rows))
    draw.shuffle(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loop = ours(recipe, rows, folder)
        base, end, documents = loop.learner.task.base.folder, loop.learner.task.end, loop.learner.documents
        answers = sum(len(document.tokens) - document.answer_start for document in documents)
        systems = {
            "plain, padded to the longest": lambda: plain_pass(base, documents, end, "padded", folder),
            "plain, grouped by length": lambda: plain_pass(base, documents, end, "grouped", folder),
            "plain, packed with a block mask": lambda: plain_pass(base, documents, end, "packed", folder),
            "kauli": lambda: one_pass(loop),
        }
        loop.step(loop.plan.epoch(0)[0])  # warm-up; the plain ones warm up within their pass, which is longer
        speeds: dict[str, list[float]] = {system: [] for system in systems}
        for _ in range(options.rounds):
            for system, run in systems.items():
                speeds[system].append(answers / run())
    ratios = {
        system: [ours / theirs for ours, theirs in zip(speeds["kauli"], speeds[system], strict=True)]
        for system in systems
    }
    result = {
        "machine": machine(),
        "threads": options.threads,
        "load": os.getloadavg()[0],
        "examples": len(rows),
        "loss_tokens": answers,
        "rounds": options.rounds,
        "loss_tokens_per_second": {system: statistics.median(values) for system, values in speeds.items()},
        "kauli_over": {
            system: [min(r), statistics.median(r), max(r)] for system, r in ratios.items() if system != "kauli"
        },
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return
    lines = [
        f"{options.base}, LoRA r=8 on q/v, {len(rows)} examples with {answers} loss tokens, a third of them "
        f"paragraphs; {machine()}, {options.threads} threads, load {result['load']:.1f}; {options.rounds} rounds, "
        "one pass of each system a round. Command: `make bench`.",
        "",
        "| system | loss tokens/s, median | kauli is faster by: median (least to most) |",
        "| --- | --- | --- |",
    ]
    for system, values in speeds.items():
        spread = f"{statistics.median(ratios[system]):.2f}x ({min(ratios[system]):.2f} to {max(ratios[system]):.2f})"
        lines.append(f"| {system} | {statistics.median(values):.1f} | {'' if system == 'kauli' else spread} |")
    print("\n".join(lines))
    if options.results:
        update_section(options.results, "throughput-training", "\n".join(lines))


if __name__ == "__main__":
    main()
