"""The certificate of an adapter: from what is known of one answer to the score that it probably has, and to a bound.

Both are linear in the figures of the answer (`figures_of`). They are learned on validation rows
(`kauli.training.evaluation.certify`): the first by least squares, the second as a quantile that is moved until it holds
for the wanted share of held-out rows.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kauli.models.languages import script_share
from kauli.models.metrics import METRICS

Colour = Literal["green", "yellow", "red"]
COLOURS: tuple[Colour, ...] = get_args(Colour)
_DOUBTFUL = 2.33  # standard errors: one batch in a hundred by chance
_FEWEST = 8  # answers of a batch that is judged as one
_OUTSIDE = 0.3  # of a batch's answers that may have figures which validation rows did not have


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Estimate:
    """What is known of one answer's score, in the metric of the certificate."""

    metric: str
    """A name of `kauli.models.metrics.METRICS`."""
    expected: float
    bound: float
    """The score is at least this (at most, of a metric that is better lower) in nine of ten answers."""
    colour: Colour
    unusual: bool = False
    """Whether some figure of the answer lies outside of what the validation rows had."""

    @property
    def words(self) -> str:
        """For a comment in a document: "yellow: chrF3 48 expected, at least 31 in 9 of 10"."""
        metric = METRICS[self.metric]
        side = "at most" if metric.better == "lower" else "at least"
        shown = [f"{100 * one:.0f} %" if metric.percent else f"{one:.0f}" for one in (self.expected, self.bound)]
        return f"{self.colour}: {metric.label.split(',')[0]} {shown[0]} expected, {side} {shown[1]} in 9 of 10"


class Linear(_Part):
    """An estimate of a score from the figures of an answer."""

    intercept: float
    weights: dict[str, float]

    def of(self, figures: Mapping[str, float]) -> float:
        """The estimate; a figure that is missing counts as 0."""
        return self.intercept + sum(weight * figures.get(name, 0.0) for name, weight in self.weights.items())


class Certificate(_Part):
    """How good the answers in one language are expected to be, one by one."""

    metric: str
    """A name of `kauli.models.metrics.METRICS`; of single answers, not of a corpus."""
    level: float = 0.9
    """The share of answers for which the bound holds."""
    green: float
    """From this expected score on an answer is green,"""
    yellow: float
    """and from this one on yellow."""
    segments: int
    """Validation rows that it was learned on, of so many"""
    groups: int
    expected: Linear
    bound: Linear
    seen: dict[str, tuple[float, float]]
    """Figure -> the range that all but one in a hundred validation rows had at each end."""
    coverage: float
    """The share of held-out validation rows for which the bound held, of five folds."""
    rank_correlation: float
    """Spearman's, of the expected and the true score, of the same rows."""
    usual: tuple[float, float]
    """Mean and standard deviation of the expected score of these rows."""
    curve: list[tuple[float, float]] = Field(default_factory=list)
    """(mean expected, mean true score) of ten equal parts of these rows, ordered by the first."""

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> "Certificate":
        if (self.green - self.yellow) * self.sign < 0:
            order = "at least" if self.sign > 0 else "at most"
            raise ValueError(f"green is {order} yellow, got green {self.green:g} and yellow {self.yellow:g}")
        return self

    @property
    def sign(self) -> int:
        """1 where a higher score is better, else -1."""
        return -1 if METRICS[self.metric].better == "lower" else 1

    def assess(self, figures: Mapping[str, float]) -> Estimate:
        """The estimate for an answer with these figures.

        Figures beyond the seen range count as its end: a line says nothing of what lies beyond.
        """
        inside = {name: min(high, max(low, figures.get(name, 0.0))) for name, (low, high) in self.seen.items()}
        expected, bound = self._possible(self.expected.of(inside)), self._possible(self.bound.of(inside))
        bound = min(bound, expected) if self.sign > 0 else max(bound, expected)
        return Estimate(
            metric=self.metric, expected=round(expected, 4), bound=round(bound, 4), colour=self._colour(expected),
            unusual=any(
                not low - 1e-9 <= figures.get(name, 0.0) <= high + 1e-9 for name, (low, high) in self.seen.items()
            ),
        )  # fmt: skip

    def doubt(self, estimates: Sequence[Estimate]) -> str | None:
        """Why answers as a whole are to be doubted, as a sentence; None: they are as validation rows were, or few."""
        if len(estimates) < _FEWEST:
            return None
        mean, spread = self.usual
        found = sum(one.expected for one in estimates) / len(estimates)
        unusual = sum(one.unusual for one in estimates) / len(estimates)
        label = METRICS[self.metric].label.split(",")[0]
        if (mean - found) * self.sign > _DOUBTFUL * spread / math.sqrt(len(estimates)):
            return f"Expected {label} {found:.3g}, {mean:.3g} on validation rows: this is harder than what was learned"
        if unusual > _OUTSIDE:
            return f"{unusual:.0%} of the answers are unlike those of validation rows: expect less than estimated"
        return None

    def _colour(self, expected: float) -> Colour:
        for colour, limit in (("green", self.green), ("yellow", self.yellow)):
            if (expected - limit) * self.sign >= 0:
                return "green" if colour == "green" else "yellow"
        return "red"

    def _possible(self, score: float) -> float:
        return max(0.0, score) if self.sign < 0 else min(100.0, max(0.0, score))


def figures_of(
    text: str, logprobs: Sequence[float], language: str, *,
    source: str | None = None, similarity: float | None = None, seconds: float | None = None, cut: bool = False,
) -> dict[str, float]:  # fmt: skip
    """What is known of an answer without a reference.

    Args:
        text: the answer.
        logprobs: the natural log probability of each of its tokens; may be empty.
        language: its BCP-47 tag.
        source: what it translates or answers; None: nothing in words.
        similarity: 0 to 100, of the most similar pair of the memory.
        seconds: of the audio that it transcribes.
        cut: whether it was cut off at the most tokens.
    """
    costs = sorted(-one for one in logprobs) or [0.0]
    worst = costs[-max(1, len(costs) // 5) :]
    size = len(text.strip())
    data = text.strip().casefold().encode()
    figures = {
        "cost": sum(costs) / len(costs),
        "worst": sum(worst) / len(worst),
        "certainty": math.exp(-sum(costs) / len(costs)),
        "length": math.log1p(size),
        "foreign": 1.0 - script_share(text, language),
        "repetition": max(0.0, len(data) / len(zlib.compress(data)) - 1.0) if data else 0.0,
        "cut": float(cut),
        "empty": float(not size),
    }
    if source is not None:
        figures["ratio"] = abs(math.log1p(size) - math.log1p(len(source.strip())))
        figures["source"] = math.log1p(len(source.strip()))
    if similarity is not None:
        figures["similarity"] = similarity / 100
        figures["certain_similarity"] = figures["certainty"] * similarity / 100
    if seconds is not None:
        figures["speed"] = size / max(seconds, 0.1)
        figures["seconds"] = math.log1p(seconds)
    return figures
