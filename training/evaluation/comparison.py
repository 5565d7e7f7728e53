"""What a comparison of recipes found: cells, lines and paired differences, without anything that trains."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kauli.models.languages import display_name
from kauli.models.metrics import METRICS, SYNTHETIC
from kauli.training.evaluation.intervals import Array, Interval, difference, interval
from kauli.training.evaluation.results import Scores, bracket, columns, defined, format_value, scores_from_json
from kauli.training.evaluation.scorers import finish_of

ENGLISH = "english_bits_per_byte"
"""Bits per byte on the English test rows: lower than another recipe's means that less was forgotten."""


@dataclass(frozen=True)
class Cell:
    """One recipe trained with one seed and evaluated on the test split."""

    recipe: str
    sha256: str
    seed: int
    adapter: str
    seconds: float
    """Of the whole run: start-up, training and evaluation."""
    scores: Scores
    base_scores: Scores

    def to_json(self) -> dict[str, Any]:
        """What is stored."""
        return {**vars(self), "scores": self.scores.to_json(), "base_scores": self.base_scores.to_json()}


def cell_from_json(stored: dict[str, Any]) -> Cell:
    """The inverse of `Cell.to_json`."""
    scores = {name: scores_from_json(stored[name]) for name in ("scores", "base_scores")}
    return Cell(**{**stored, **scores})


@dataclass(frozen=True)
class Line:
    """One recipe in a comparison: metric -> sums (S, G, K) of its adapters, and of its base."""

    name: str
    sha256: str
    adapters: tuple[str, ...]
    seconds: tuple[float, ...]
    sums: dict[str, Array]
    base_sums: dict[str, Array]

    def interval(self, metric: str) -> Interval:
        """The mean over seeds with its 95 % interval."""
        return interval(self.sums[metric], finish_of(metric))

    def deviation(self, metric: str) -> float:
        """The standard deviation over seeds; NaN with one seed."""
        values = finish_of(metric)(self.sums[metric].sum(axis=1))
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def base(self, metric: str) -> float:
        """The bare base on the same rows."""
        return float(np.mean(finish_of(metric)(self.base_sums[metric].sum(axis=1))))


@dataclass(frozen=True)
class CompareResult:
    """Recipes on common languages, seeds and test groups; differences are against the first."""

    languages: tuple[str, ...]
    seeds: tuple[int, ...]
    groups: int
    lines: tuple[Line, ...]
    folds: int | None = None
    """Parts of the groups that were tested, each by its own run; None: the test split."""

    @property
    def metrics(self) -> list[str]:
        """The metrics that all recipes have, in the usual order."""
        ordered = (*METRICS, *(SYNTHETIC + name for name in METRICS))
        return [name for name in ordered if all(name in line.sums for line in self.lines)]

    def difference(self, line: Line, metric: str) -> Interval:
        """The recipe minus the first recipe, paired by seed and group."""
        return difference(line.sums[metric], self.lines[0].sums[metric], finish_of(metric))

    def to_json(self) -> dict[str, Any]:
        """The answer of `kauli compare --json`."""
        return {
            "languages": list(self.languages),
            "split": "test",
            "folds": self.folds,
            "seeds": list(self.seeds),
            "groups": self.groups,
            "recipes": [self._line_json(line) for line in self.lines],
            "differences": [self._difference_json(line) for line in self.lines[1:]],
        }

    def _line_json(self, line: Line) -> dict[str, Any]:
        intervals = {metric: line.interval(metric) for metric in self.metrics}
        return {
            "recipe": line.name,
            "sha256": line.sha256,
            "adapters": list(line.adapters),
            "seconds": list(line.seconds),
            "metrics": {metric: defined(one.value) for metric, one in intervals.items()},
            "deviations": {metric: defined(line.deviation(metric)) for metric in self.metrics},
            "intervals": {metric: one.pair() for metric, one in intervals.items() if one.known},
            "base_metrics": {metric: defined(line.base(metric)) for metric in self.metrics},
        }

    def _difference_json(self, line: Line) -> dict[str, Any]:
        found = {metric: self.difference(line, metric) for metric in self.metrics}
        return {
            "recipe": line.name,
            "against": self.lines[0].name,
            "metrics": {metric: defined(one.value) for metric, one in found.items()},
            "intervals": {metric: one.pair() for metric, one in found.items() if one.known},
        }

    def summary(self) -> str:
        """A table for the terminal."""
        return "\n".join([self.heading(), "", *columns(self.table())])

    def heading(self) -> str:
        """What was compared, in one line."""
        names = ", ".join(display_name(tag) for tag in self.languages)
        seeds = "1 seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        over = "groups" if len(self.seeds) == 1 else "seeds and groups"
        tested = f"{self.groups} test groups" if self.folds is None else f"{self.groups} groups in {self.folds} folds"
        return f"{names}, {tested}, {seeds}; 95 % intervals over {over}, differences paired"

    def table(self) -> list[list[str]]:
        """Rows of cells, the first one the heads."""
        against = f"minus {self.lines[0].name}"
        heads = ["metric", "recipe", "mean", "sd of seeds", "95 % interval", against, "95 % interval", "base"]
        rows = [heads]
        for metric in self.metrics:
            for line in self.lines:
                one = line.interval(metric)
                change = self.difference(line, metric) if line is not self.lines[0] else None
                apart = ["", ""]
                if change:
                    apart = [format_value(metric, change.value, sign=True), bracket(metric, change, sign=True)]
                first = metric if line is self.lines[0] else ""
                mean, deviation, base = (
                    format_value(metric, value) for value in (one.value, line.deviation(metric), line.base(metric))
                )
                rows.append([first, line.name, mean, deviation, bracket(metric, one), *apart, base])
        return rows
