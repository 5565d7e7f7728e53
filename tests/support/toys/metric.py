"""A toy metric: how long answers are, in references."""

from collections.abc import Sequence
from typing import Any

from kauli.models.metrics import Metric
from kauli.training.evaluation.scorers import Scorer

LENGTH = Metric("length_ratio", "Length of the answers", "1 where they are as long as the references.", None, "ratio")


def lengths(texts: Sequence[str], targets: Sequence[str], rows: Sequence[Any]) -> list[list[float]]:
    """Of each row (characters of the answer, of the reference)."""
    return [[float(len(text)), float(len(right))] for text, right in zip(texts, targets, strict=True)]


SCORER = Scorer(frozenset({"text"}), lengths)
