"""What ten minutes of training give, beside a plain Hugging Face Trainer with peft on the same rows (`make results`).

Each system trains alone on the machine for the same minutes, on the same rows of the same split, and is scored by the
same code on the untouched test groups: bits per byte by source, and on English, which shows what was forgotten. The
plain script's own schedule is fitted to the minutes by its measured speed, before its clock starts. Finished
trainings are kept below the storage and not run again.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from plain_script import FORMS
from results_file import update_section

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base
from kauli.models.paths import default_storage
from kauli.models.progress import note
from kauli.models.text.task import TextTask
from kauli.training.card import machine
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.evaluation.rows import english_rows
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import load_recipe, parse_recipe
from kauli.training.train import train

SETS = ("udhr", "other", "english")


def plain(recipe: Recipe, form: str, minutes: float, seed: int, rate: float, folder: Path) -> Path:
    """Train the plain script in a process of its own; returns its adapter's folder."""
    out = folder / f"{recipe.name}-{form}-{minutes:g}min-seed{seed}"
    if (out / "result.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    base = find_base(recipe.base)
    task = TextTask.load(base, device="cpu")
    rows = [row for row in load_data(recipe.data, recipe.language).rows(split="train") if row["text"]]
    documents = [[document.tokens, document.answer_start] for document in task.encode(rows, recipe.train.max_length)]
    (out / "documents.json").write_text(json.dumps({"documents": documents, "end": task.end}))
    command = [
        sys.executable,
        str(Path(__file__).parent / "plain_script.py"),
        "--documents",
        str(out / "documents.json"),
    ]
    command += ["--base", str(base.folder), "--out", str(out), "--form", form, "--minutes", str(minutes)]
    command += ["--rate", str(rate), "--seed", str(seed), "--threads", str(os.cpu_count())]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    (out / "documents.json").unlink()
    (out / "result.json").write_text(result)
    return out


def ours(recipe: Recipe, minutes: float, seed: int, storage: str, folder: Path) -> Path:
    """Train our recipe as the command does, through Ray Train; returns its adapter's folder."""
    kept = folder / f"{recipe.name}-kauli-{recipe.sha256(with_seed=False)[:8]}-{minutes:g}min-seed{seed}.json"
    if not kept.exists():
        content = recipe.model_dump()
        content["train"] |= {"minutes": minutes, "seed": seed}
        result = train(parse_recipe(content, recipe.name), storage, generated=16)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"adapter": result.adapter}))
    return Registry(storage).fetch(json.loads(kept.read_text())["adapter"])


def spent(recipe: Recipe, system: str, minutes: float, seed: int, storage: str, folder: Path) -> str:
    """Steps and minutes that a training had: a plain script may end early or late by its schedule's guess."""
    if system == "kauli":
        kept = folder / f"{recipe.name}-kauli-{recipe.sha256(with_seed=False)[:8]}-{minutes:g}min-seed{seed}.json"
        training = Registry(storage).card(json.loads(kept.read_text())["adapter"]).training
        assert training is not None
        return f"{training.steps} steps in {training.seconds / 60:.1f} min"
    lines = (folder / f"{recipe.name}-{system}-{minutes:g}min-seed{seed}" / "result.json").read_text().splitlines()
    result = json.loads(lines[-1])
    return f"{result['steps']} of {result['planned_steps']} planned steps in {result['seconds'] / 60:.1f} min"


def score(base: Base, dataset: Dataset, adapter: Path | None) -> dict[str, dict[str, tuple[float, int]]]:
    """Set -> group -> (bits, bytes) on the test split."""
    task = TextTask.load(base, device="cpu")
    if adapter is not None:
        task.add_adapter("scored", adapter)
    rows = [row for row in dataset.rows(split="test") if row["text"]]
    kinds = [("udhr" if row["source"] == "udhr" else "other", row) for row in rows]
    kinds += [("english", row) for row in english_rows(dataset, "test") if row["source"] == "udhr"]
    sums: dict[str, dict[str, tuple[float, int]]] = {kind: {} for kind in SETS}
    costs = task.bits([row for _, row in kinds], None if adapter is None else "scored")
    for (kind, row), (bits, count) in zip(kinds, costs, strict=True):
        before = sums[kind].get(row["group"], (0.0, 0))
        sums[kind][row["group"]] = (before[0] + bits, before[1] + count)
    return sums


def value(groups: dict[str, tuple[float, int]]) -> float:
    """Bits per byte of all groups."""
    return sum(bits for bits, _ in groups.values()) / sum(count for _, count in groups.values())


def relative(ours: dict[str, tuple[float, int]], theirs: dict[str, tuple[float, int]]) -> str:
    """How far ours is below theirs, with a 95 % interval: a paired bootstrap over groups."""
    pairs = np.array([[*ours[group], *theirs[group]] for group in sorted(ours)])
    draws = np.random.default_rng(0).integers(0, len(pairs), (1000, len(pairs)))
    sums = pairs[draws].sum(axis=1)
    change = (sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3]) - 1
    low, high = np.percentile(change, [2.5, 97.5])
    return f"{100 * (value(ours) / value(theirs) - 1):+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="text-sw")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rate", type=float, default=5e-4, help="the plain script's learning rate")
    parser.add_argument("--storage", default=default_storage())
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[2] / "RESULTS.md")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    base = find_base(recipe.base)
    dataset = load_data(recipe.data, recipe.language)
    folder = Path(options.storage) / "runs" / "plain"
    lines = [
        f"`{recipe.name}`, {options.minutes:g} minutes of training each, one after another on {machine()}; "
        f"{len(dataset.rows('train'))} training rows, data {dataset.sha256[:12]}; the plain script with learning rate "
        f"{options.rate:g}. Bits per byte on the test split (lower is better); in brackets kauli's change "
        "with a 95 % interval, a paired bootstrap over groups. Command: `make results`.",
        "",
        "| seed | system | training | UDHR articles | other rows | English UDHR articles |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    empty = score(base, dataset, None)
    lines.append("| | base, untrained | none | " + " | ".join(f"{value(empty[kind]):.3f}" for kind in SETS) + " |")
    for seed in range(options.seeds):
        scored: dict[str, Any] = {}
        note(f"seed {seed}: kauli, {recipe.name}")
        scored["kauli"] = score(base, dataset, ours(recipe, options.minutes, seed, options.storage, folder))
        note(str({kind: round(value(sums), 3) for kind, sums in scored["kauli"].items()}))
        for form in ("padded", "packed"):
            note(f"seed {seed}: plain script, {FORMS[form]}")
            scored[form] = score(base, dataset, plain(recipe, form, options.minutes, seed, options.rate, folder))
        for system, sums in scored.items():
            cells = []
            for kind in SETS:
                against = "" if system == "kauli" else f" (kauli: {relative(scored['kauli'][kind], sums[kind])})"
                cells.append(f"{value(sums[kind]):.3f}{against}")
            title = "kauli" if system == "kauli" else f"plain script: {FORMS[system]}"
            cost = spent(recipe, system, options.minutes, seed, options.storage, folder)
            lines.append(f"| {seed} | {title} | {cost} | " + " | ".join(cells) + " |")
    text = "\n".join(lines)
    print(text)
    update_section(options.results, f"quality-{recipe.name}", text)


if __name__ == "__main__":
    main()
