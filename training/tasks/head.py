"""Few-shot heads from data to a published adapter: a classifier on the frozen embeddings of an `align` base.

A row's text is the name of its class, in the row's language. `shots` pictures of each class are drawn from the training
split; the rest of it is not looked at. The base beside it is zero-shot: the nearest class name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.vision.align import AlignTask
from kauli.models.vision.heads import Head
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.few_shot import draw_shots
from kauli.training.evaluation.results import EvalResult, Scores
from kauli.training.evaluation.scorers import Tally, tally
from kauli.training.features.pairs import picture_features
from kauli.training.features.pictures import picture_rows
from kauli.training.methods import FewShot
from kauli.training.recipe import Recipe
from kauli.training.tasks.text import Row


@dataclass(frozen=True)
class LabelledPictures:
    """A split as a head sees it: rows, their embeddings (N, D), their classes (N,)."""

    rows: list[Row]
    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class FittedHead:
    """A head with what it was fitted on, and its error on validation beside that of zero-shot."""

    head: Head
    rows: list[Row]
    validation: float
    base_validation: float


def fit_head(recipe: Recipe, base: Base, dataset: Dataset) -> FittedHead:
    """Draw the shots, embed them, fit the head; nothing is looked at on test.

    Raises UsageError where a class has too few training pictures.
    """
    method = recipe.method
    assert isinstance(method, FewShot)
    task = AlignTask.load(base)
    classes = class_names(dataset, recipe.language)
    text = task.embed_texts(list(classes))
    train = labelled(task, dataset, "train", recipe.language, classes)
    shots = draw_shots(train.labels, len(classes), method.shots, recipe.train.seed)
    scale = task.logit_scale
    head = Head.fit(
        method.head, train.features[shots], train.labels[shots], classes, text, recipe.train.seed, scale
    )  # fmt: skip
    zero = zero_shot(classes, text, scale)
    validation = labelled(task, dataset, "validation", recipe.language, classes)
    errors = [1 - score(one, validation)["macro_f1"].value() for one in (head, zero)]
    return FittedHead(head, [train.rows[at] for at in shots.tolist()], errors[0], errors[1])


def evaluate_head(
    folder: Path, base: Base, dataset: Dataset, languages: Sequence[str], split: str = "test"
) -> EvalResult:
    """Macro-F1 and accuracy of the head in `folder` beside zero-shot, on all labelled pictures of a split.

    Raises UsageError where the split has none of some class that the head knows.
    """
    head = Head.load(folder)
    task = AlignTask.load(base)
    found = labelled(task, dataset, split, languages, head.classes)
    if not found.rows:
        raise UsageError(f"the data has no pictures of {', '.join(head.classes)} in its '{split}' split.")
    zero = zero_shot(head.classes, task.embed_texts(list(head.classes)), task.logit_scale)
    scores = [Scores({languages[0]: score(one, found)}) for one in (head, zero)]
    return EvalResult(
        adapter=folder.name,
        base=base.name,
        languages=tuple(languages),
        split=split,
        seed=0,
        examples=len(found.rows),
        groups=len({row["group"] for row in found.rows}),
        generated=0,
        scores=scores[0],
        base_scores=scores[1],
        data={"name": dataset.name, "sha256": dataset.sha256},
        notes=(f"the base is zero-shot: the nearest of the {len(head.classes)} class names",),
        task="align",
    )


def class_names(dataset: Dataset, languages: Sequence[str]) -> tuple[str, ...]:
    """The labels of the training split, sorted."""
    return tuple(sorted({nfc(row["text"]).strip() for row in picture_rows(dataset, "train", languages, None)}))


def labelled(
    task: AlignTask, dataset: Dataset, split: str, languages: Sequence[str], classes: Sequence[str]
) -> LabelledPictures:
    """The pictures of a split whose text is one of the classes."""
    place = {name: at for at, name in enumerate(classes)}
    rows: list[Any] = [
        row for row in picture_rows(dataset, split, languages, None) if nfc(row["text"]).strip() in place
    ]
    features = task.project_images(picture_features(task, rows)) if rows else torch.zeros(0, task.dim)
    return LabelledPictures(rows, features, torch.tensor([place[nfc(row["text"]).strip()] for row in rows]).long())


def zero_shot(classes: tuple[str, ...], text: Tensor, scale: float) -> Head:
    """The head that takes the nearest class name."""
    nothing = torch.zeros(0, text.shape[1])
    return Head.fit("zero_shot", nothing, torch.zeros(0, dtype=torch.int64), classes, text, 0, scale)


def score(head: Head, found: LabelledPictures) -> dict[str, Tally]:
    """`macro_f1`, from each group's counts of (class, guess), and `accuracy`."""
    classes = len(head.classes)
    guesses: list[int] = head.logits(found.features).argmax(dim=-1).tolist()
    labels: list[int] = found.labels.tolist()
    groups = [row["group"] for row in found.rows]
    counts = torch.zeros(len(groups), classes * classes)
    for at, (label, guess) in enumerate(zip(labels, guesses, strict=True)):
        counts[at, label * classes + guess] = 1
    right = [[float(label == guess), 1.0] for label, guess in zip(labels, guesses, strict=True)]
    return {"macro_f1": tally("macro_f1", groups, counts.tolist()), "accuracy": tally("accuracy", groups, right)}
