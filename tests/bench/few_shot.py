"""Few-shot classification on frozen features: macro-F1 by kind of head and number of shots, over several draws.

Shapes: N rows of a split, C classes, D the width of the features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import classification_report, f1_score
from torch import Tensor

from kauli.models.errors import UsageError
from kauli.models.vision.heads import HEAD_KINDS, LOGIT_SCALE, Head, HeadKind
from kauli.training.evaluation.head import draw_shots
from kauli.training.evaluation.intervals import resample

SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class FewShotScore:
    """Macro-F1 on test of one kind of head at a number of shots of each class."""

    kind: HeadKind
    shots: int
    """0: nothing was drawn (zero_shot)."""
    values: tuple[float, ...]
    """One for each draw."""

    @property
    def mean(self) -> float:
        """Over the draws."""
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float]:
        """Of the mean, 95 %, by bootstrap over the draws; the test rows are the same in all. NaN for fewer than two."""
        if len(self.values) < 2:
            return float("nan"), float("nan")
        means = resample(len(self.values)) @ np.asarray(self.values) / len(self.values)
        low, high = np.percentile(means, [2.5, 97.5])
        return float(low), float(high)


def few_shot_scores(
    features: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    text: Tensor,
    kinds: Sequence[HeadKind] = HEAD_KINDS,
    shots: Sequence[int] = SHOTS,
    seeds: int = 10,
    scale: float = LOGIT_SCALE,
) -> list[FewShotScore]:
    """The zero-shot line where `kinds` has it, then a score for each other kind and number of shots.

    All kinds learn from the same draws, and a draw of more shots holds those of fewer. Nothing is chosen on test.

    Args:
        features: `train` and `test`, (N, D) each.
        labels: `train` and `test`, (N,) int64.
        text: (C, D) embeddings of the classes' prompts.
        kinds: of heads.
        shots: of each class.
        seeds: how many draws; the seed of a draw is that of its heads too.
        scale: the model's logit scale.

    Raises `UsageError` when train has too few rows of a class, or test none.
    """
    classes = tuple(f"class {place}" for place in range(len(text)))
    _check_test(labels["test"], len(text))

    def score(kind: HeadKind, rows: Tensor, seed: int) -> float:
        head = Head.fit(kind, features["train"][rows], labels["train"][rows], classes, text, seed, scale)
        return macro_f1(head, features["test"], labels["test"])

    found = []
    if "zero_shot" in kinds:
        nothing = torch.zeros(0, dtype=torch.int64)
        found.append(FewShotScore("zero_shot", 0, (score("zero_shot", nothing, 0),)))
    draws = {count: [draw_shots(labels["train"], len(text), count, seed) for seed in range(seeds)] for count in shots}
    for kind in kinds:
        if kind != "zero_shot":
            for count, drawn in draws.items():
                values = tuple(score(kind, rows, seed) for seed, rows in enumerate(drawn))
                found.append(FewShotScore(kind, count, values))
    return found


def macro_f1(head: Head, features: Tensor, labels: Tensor) -> float:
    """The mean over the head's classes of F1 (0 to 1), each class weighing the same."""
    places = list(range(len(head.classes)))
    guesses = _guesses(head, features)
    return float(f1_score(labels.cpu().numpy(), guesses, labels=places, average="macro", zero_division=0.0))


def report(head: Head, features: Tensor, labels: Tensor) -> str:
    """scikit-learn's classification report: precision, recall, F1 and rows of each class by its name."""
    places = list(range(len(head.classes)))
    _check_test(labels, len(places))
    text = classification_report(
        labels.cpu().numpy(),
        _guesses(head, features),
        labels=places,
        target_names=list(head.classes),
        digits=3,
        zero_division=0.0,
    )
    return str(text)


def _guesses(head: Head, features: Tensor) -> list[int]:
    guesses: list[int] = head.logits(features).argmax(dim=-1).tolist()
    return guesses


def _check_test(labels: Tensor, classes: int) -> None:
    missing = sorted(set(range(classes)) - set(labels.tolist()))
    if missing:
        raise UsageError(f"test has no rows of classes {missing}: macro-F1 needs some of each, so leave those out.")
