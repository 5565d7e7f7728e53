"""Classification heads measured: macro-F1 and accuracy beside zero-shot, on the labelled images of a split."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kauli.models.bases.find import is_aligned
from kauli.models.errors import UsageError
from kauli.models.languages import nfc
from kauli.models.vision.heads import Head
from kauli.training.evaluation.request import ADAPTER, EvalRequest
from kauli.training.evaluation.results import EvalResult
from kauli.training.evaluation.scorers import Row, Tally, tally
from kauli.training.evaluation.systems import BASE, Answering, Systems
from kauli.training.features.images import image_rows
from kauli.training.features.left_out import LeftOut
from kauli.training.features.pairs import image_features


@dataclass(frozen=True)
class LabelledImages:
    """The labelled images of a split: rows, their embeddings (N, D), their classes (N,)."""

    rows: list[Any]
    features: Tensor
    labels: Tensor


def evaluate_head(request: EvalRequest) -> EvalResult:
    """Macro-F1 and accuracy of a head beside zero-shot, on all labelled images of a split.

    Raises:
        UsageError: the split has no image of the head's classes.
        KauliError: a damaged head.
    """
    head = Head.load(request.folder)
    task = request.base_task("align")
    rows, left_out = labelled_rows(request, head.classes)
    found = embedded(task, rows, head.classes)
    zero = zero_shot(head.classes, task.embed_texts(list(head.classes)), task.logit_scale)
    systems = Systems(request, Answering("align"), left_out)
    for name, one in ((ADAPTER, head), (BASE, zero)):
        systems.add(name, {request.tags[0]: score(one, found)})
    systems.notes.append(f"the base is zero-shot: the nearest of the {len(head.classes)} class names")
    result = systems.result(found.rows)
    return result if is_aligned(request.base) else replace(result, base=f"{result.base} (untrained: by chance)")


def labelled_rows(request: EvalRequest, classes: Collection[str]) -> tuple[list[Row], LeftOut]:
    """The rows that are measured: with an image of one of the classes; UsageError where there is none."""
    left_out = LeftOut(request.split, request.dataset.place)
    found = image_rows(request.dataset, request.split, request.tags, left_out=left_out)
    rows: list[Row] = [row for row in found if label_of(row) in classes]
    if not rows:
        raise request.nothing(f"images of {', '.join(sorted(classes))}", left_out)
    return rows, left_out


def embedded(task: Any, rows: Sequence[Any], classes: Sequence[str]) -> LabelledImages:
    """Rows of known classes with their embeddings; `task` is the base of `align`."""
    place = {name: at for at, name in enumerate(classes)}
    features = task.project_images(image_features(task, rows)) if rows else torch.zeros(0, task.dim)
    return LabelledImages(list(rows), features, torch.tensor([place[label_of(row)] for row in rows]).long())


def draw_shots(labels: Tensor, classes: int, shots: int, seed: int) -> Tensor:
    """(classes * shots,) rows, `shots` of each class by chance; with the same seed, a larger number includes the rows
    of a smaller one.

    Raises `UsageError` when a class has fewer rows.
    """
    random = torch.Generator().manual_seed(seed)
    rows = []
    for label in range(classes):
        own = (labels.cpu() == label).nonzero()[:, 0]
        if len(own) < shots:
            raise UsageError(f"class {label} has {len(own)} rows to draw from, not {shots}: ask for fewer shots.")
        rows.append(own[torch.randperm(len(own), generator=random)[:shots]])
    return torch.cat(rows)


def label_of(row: Row) -> str:
    """The class of a row: its text."""
    return nfc(row["text"]).strip()


def zero_shot(classes: tuple[str, ...], text: Tensor, scale: float) -> Head:
    """The head that takes the nearest class name."""
    nothing = torch.zeros(0, text.shape[1])
    return Head.fit("zero_shot", nothing, torch.zeros(0, dtype=torch.int64), classes, text, 0, scale)


def score(head: Head, found: LabelledImages) -> dict[str, Tally]:
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
