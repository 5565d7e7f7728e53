"""Retrieval on held-out concepts: the recipe `align-starter` beside a plain script, on the same rows (3 seeds).

The plain script is what one writes in an afternoon: the same frozen features as they are, one linear layer a side
into 512 dimensions, AdamW with learning rate 1e-3, 30 epochs of batches of 256, CLIP's loss, one language at a time.
Ours is one model for all languages. Both are scored on the untouched test groups, and nothing was chosen on them.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results_file import update_section
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.bases.find import find_base
from kauli.models.languages import display_name
from kauli.models.progress import note
from kauli.models.vision.align import AlignTask
from kauli.models.vision.training import TrainableAlign
from kauli.training.card import machine
from kauli.training.data.dataset import load_data
from kauli.training.evaluation.retrieval import retrieval
from kauli.training.features.images import image_rows
from kauli.training.features.pairs import image_features, text_features
from kauli.training.loop.loop import Loop
from kauli.training.loop.session import LocalSession
from kauli.training.recipe import Recipe
from kauli.training.recipe_file import load_recipe, parse_recipe
from kauli.training.tasks.align import AlignLearner
from kauli.training.tasks.base import Examples

SHOWN = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r10")
Rates = Mapping[str, Mapping[str, float]]  # language -> metric -> value


def plain(
    images: Tensor, texts: Tensor, seed: int, dim: int = 512, epochs: int = 30, batch: int = 256
) -> list[nn.Linear]:
    """The plain script on the rows of one language: (N, W) features each -> its two layers."""
    torch.manual_seed(seed)
    layers = [nn.Linear(images.shape[1], dim), nn.Linear(texts.shape[1], dim)]
    scale = nn.Parameter(torch.tensor(1 / 0.07).log())
    optimizer = torch.optim.AdamW([*layers[0].parameters(), *layers[1].parameters(), scale], lr=1e-3)
    for _ in range(epochs):
        for places in torch.randperm(len(images)).split(batch):
            one = functional.normalize(layers[0](images[places]), dim=-1)
            other = functional.normalize(layers[1](texts[places]), dim=-1)
            logits, right = scale.exp() * one @ other.T, torch.arange(len(places))
            loss = (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return layers


def rates(rows: Sequence[Mapping[str, Any]], images: Tensor, texts: Tensor) -> Rates:
    """The retrieval rates of embeddings, which need not have length 1."""
    with torch.no_grad():
        found = retrieval(rows, functional.normalize(images, dim=-1), functional.normalize(texts, dim=-1))
    return {language: {name: one.value() for name, one in tallies.items()} for language, tallies in found.items()}


def ours(recipe: Recipe, seed: int, splits: Mapping[str, list[Any]]) -> AlignTask:
    """Train the recipe in this process, as `kauli train` does; the task, with the adapter "ours"."""
    content = recipe.model_dump()
    content["train"]["seed"] = seed
    seeded = parse_recipe(content, recipe.name)
    task = TrainableAlign.load(find_base(recipe.base, task="align"), device="cpu")
    learner = AlignLearner(task, seeded, Examples(splits["train"], splits["validation"], (), "bench"))
    with tempfile.TemporaryDirectory() as folder:
        Loop(learner, seeded, "bench", LocalSession(Path(folder))).run()
        learner.save(Path(folder) / "adapter")
        served = task.served()
        served.add_adapter("ours", Path(folder) / "adapter")
    return served


def mean(runs: Sequence[Rates], language: str, metric: str) -> float:
    """Over seeds."""
    return float(np.mean([run[language][metric] for run in runs]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="align-starter")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--split", default="test", choices=("validation", "test"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parents[2] / "RESULTS.md")
    options = parser.parse_args()
    recipe = load_recipe(options.recipe)
    dataset = load_data(recipe.data, recipe.language)
    splits = {
        split: image_rows(dataset, split, recipe.language, None) for split in ("train", "validation", options.split)
    }
    scored = splits[options.split]
    task = AlignTask.load(find_base(recipe.base, task="align"), device="cpu")
    # The plain script has the images that ours leaves for the second test set of `describe` as well
    learned = [*splits["train"], *image_rows(dataset, "new_pictures", recipe.language, None)]
    features = {
        name: (image_features(task, rows), text_features(task, rows))
        for name, rows in (("train", learned), (options.split, scored))
    }
    theirs: list[Rates] = []
    for seed in range(options.seeds):
        found: dict[str, Mapping[str, float]] = {}
        for language in recipe.language:
            train, test = (
                torch.tensor([place for place, row in enumerate(rows) if row["language"] == language])
                for rows in (learned, scored)
            )
            image, text = plain(features["train"][0][train], features["train"][1][train], seed)
            alone = [scored[place] for place in test.tolist()]
            with torch.no_grad():
                embedded = image(features[options.split][0][test]), text(features[options.split][1][test])
            found |= rates(alone, *embedded)
        theirs.append(found)
        note(f"plain, seed {seed}: R@10 {np.mean([one['i2t_r10'] for one in found.values()]):.3f}")
    mine: list[Rates] = []
    for seed in range(options.seeds):
        trained = ours(recipe, seed, splits)
        images, texts = features[options.split]
        mine.append(rates(scored, trained.project_images(images, "ours"), trained.project_texts(texts, "ours")))
        note(f"ours, seed {seed}: R@10 {np.mean([one['i2t_r10'] for one in mine[-1].values()]):.3f}")
    text = table(recipe, scored, theirs, mine, options, dataset.sha256)
    print(text)
    if options.split == "test":
        update_section(options.results, f"align-{recipe.name}", text)


def table(
    recipe: Recipe,
    rows: Sequence[Mapping[str, Any]],
    theirs: Sequence[Rates],
    mine: Sequence[Rates],
    options: Any,
    data: str,
) -> str:
    """Markdown: a line for each language, plain / ours in each cell, and how many times as many are found."""
    names = ("image -> text R@1", "R@5", "R@10", "text -> image R@10")
    lines = [
        f"`{recipe.name}`: images find their captions among the held-out groups of the {options.split} split, mean "
        f"of {options.seeds} seeds; plain script (one language at a time) / ours (one model for all); {machine()}; "
        f"data {data[:12]}. Command: `python tests/bench/align.py`.",
        "",
        f"| language | groups | {' | '.join(names)} | R@10, times plain |",
        "| --- | --- |" + " --- |" * (len(names) + 1),
    ]
    ratios = []
    for language in recipe.language:
        groups = len({row["group"] for row in rows if row["language"] == language})
        pairs = [(mean(theirs, language, metric), mean(mine, language, metric)) for metric in SHOWN]
        ratios.append(pairs[2][1] / pairs[2][0])
        cells = " | ".join(f"{plain:.3f} / {our:.3f}" for plain, our in pairs)
        lines.append(f"| {display_name(language)} | {groups} | {cells} | {ratios[-1]:.2f} |")
    overall = [
        np.mean([[mean(runs, language, metric) for language in recipe.language] for runs in (theirs, mine)], axis=1)
        for metric in SHOWN
    ]
    cells = " | ".join(f"{plain:.3f} / {our:.3f}" for plain, our in overall)
    reached = sum(ratio >= 1.3 for ratio in ratios)
    lines.append(f"| mean | | {cells} | {overall[2][1] / overall[2][0]:.2f} |")
    lines += [
        "",
        f"At least 1.3 times the plain script in {reached} of {len(ratios)} languages; the least: {min(ratios):.2f}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
