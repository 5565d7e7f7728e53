"""The result of an evaluation: sums by group for adapter and base, and the values, tables and JSON made of them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from html import escape
from typing import Any

from kauli.models.languages import display_name
from kauli.models.metrics import METRICS, SYNTHETIC, metric_of
from kauli.training.evaluation.intervals import Interval, difference, interval, relative
from kauli.training.evaluation.scorers import Tally, merge, tally_from_json

BITS = "bits_per_byte"
FEW_GROUPS = 20
Tallies = Mapping[str, Tally]


@dataclass(frozen=True)
class Scores:
    """What one system scored, as sums by group.

    `by_language` maps a language to its metrics (those of synthetic rows are prefixed), `by_source` and `english` map a
    source to bits per byte: on the evaluated languages, and on the English rows of the same split.
    """

    by_language: Mapping[str, Tallies]
    by_source: Tallies = field(default_factory=dict)
    english: Tallies = field(default_factory=dict)

    def total(self, languages: list[str] | None = None) -> dict[str, Tally]:
        """Metric -> sums over all languages (or those named), in a fixed order."""
        chosen = [self.by_language[tag] for tag in languages or self.by_language]
        metrics = {name: one[name].metric for one in chosen for name in one}
        # the metrics without a prefix first, each prefix's together
        order = list(METRICS)
        names = sorted(metrics, key=lambda name: (name.removesuffix(metrics[name]), order.index(metrics[name])))
        return {name: merge([one[name] for one in chosen if name in one]) for name in names}

    def values(self, languages: list[str] | None = None) -> dict[str, float | None]:
        """Metric -> its value; None where it is undefined (no answer holds a letter, say)."""
        return {name: defined(one.value()) for name, one in self.total(languages).items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain lists."""
        return {
            "by_language": {tag: _store(tallies) for tag, tallies in self.by_language.items()},
            "by_source": _store(self.by_source),
            "english": _store(self.english),
        }


def scores_from_json(stored: Mapping[str, Any]) -> Scores:
    """The inverse of `Scores.to_json`."""
    return Scores(
        {tag: _restore(tallies) for tag, tallies in stored["by_language"].items()},
        _restore(stored["by_source"]),
        _restore(stored["english"]),
    )


@dataclass(frozen=True)
class Sample:
    """One generated example. `chrf` is that of the adapter."""

    id: str
    language: str
    source: str
    prompt: str
    reference: str
    base: str
    adapter: str
    chrf: float
    continuation: bool = False
    """The row had no prompt: its first half was continued, and `reference` is the rest."""
    image: bytes | None = None
    """The row's image, encoded."""
    audio: tuple[tuple[str, bytes], ...] = ()
    """(system, its speech as mp3)."""
    drawing: str = ""
    """Of the speech: an image as a data URI."""


@dataclass(frozen=True)
class Verdict:
    """Whether an adapter is better than its base, in words."""

    better: bool
    """By its answers: some figure of them is better, beyond chance, and none is worse."""
    text: str
    """One sentence."""


@dataclass(frozen=True)
class EvalResult:
    """The evaluation of an adapter beside its base."""

    adapter: str
    base: str
    languages: tuple[str, ...]
    split: str
    seed: int
    examples: int
    groups: int
    generated: int
    scores: Scores = field(repr=False)
    base_scores: Scores = field(repr=False)
    samples: tuple[Sample, ...] = field(default=(), repr=False)
    signatures: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, str] = field(default_factory=dict)
    """`name` and `sha256` of the data set."""
    left_out: int = 0
    """Rows of the split that cannot be measured; the notes say why."""
    notes: tuple[str, ...] = ()
    task: str = "text"
    baselines: Mapping[str, Scores] = field(default_factory=dict, repr=False)
    """What is easier than the task, on the same rows: see `kauli.training.evaluation.describe`."""

    @property
    def metrics(self) -> dict[str, float | None]:
        """Of the adapter."""
        return self.scores.values()

    @property
    def base_metrics(self) -> dict[str, float | None]:
        """Of the base on the same rows."""
        return self.base_scores.values()

    @property
    def intervals(self) -> dict[str, list[float | None]]:
        """95 % intervals of `metrics`; a metric with fewer than two groups has none."""
        return {name: list(one.pair()) for name, one in self.adapter_intervals.items() if one.known}

    @cached_property
    def adapter_intervals(self) -> dict[str, Interval]:
        """Metric -> value and interval."""
        return _intervals(self.scores.total(), self.seed)

    @cached_property
    def base_intervals(self) -> dict[str, Interval]:
        """The same of the base."""
        return _intervals(self.base_scores.total(), self.seed)

    @cached_property
    def differences(self) -> dict[str, Interval]:
        """Metric -> adapter minus base, paired by group."""
        base = self.base_scores.total()
        return {name: paired(one, base[name], self.seed) for name, one in self.scores.total().items()}

    @cached_property
    def verdict(self) -> Verdict:
        """The adapter against its base, by the headline metrics; the answers' own decide, where there are any."""
        total = [name for name in self.adapter_intervals if metric_of(name).headline]
        names = [name for name in total if name in METRICS] or [n for n in total if n.startswith(SYNTHETIC)]
        sides = {name: self._side(name) for name in names}
        deciding = {side for name, side in sides.items() if metric_of(name).name != BITS} or set(sides.values())
        better = "better" in deciding and "worse" not in deciding
        word = "better" if better else "worse" if deciding == {"worse"} else "not better"
        figures = []
        for name in sorted(names, key=lambda name: metric_of(name).name == BITS):
            aside = "" if sides[name] == word else f" ({sides[name]})"
            ours, base = (_told(name, one[name]) for one in (self.metrics, self.base_metrics))
            figures.append(f"{_unit(name)} {ours}, base {base}{aside}")
        return Verdict(better, f"{self.adapter} is {word} than its base {self.base}: {'; '.join(figures)}.")

    def _side(self, name: str) -> str:
        """Where the adapter is beside its base, by the whole interval of the difference."""
        one = self.differences[name]
        low, high = (-one.high, -one.low) if metric_of(name).better == "lower" else (one.low, one.high)
        if not one.known or low <= 0 <= high:
            return "no clear difference"
        return "better" if low > 0 else "worse"

    def against_baselines(self, languages: list[str] | None = None) -> dict[str, dict[str, Interval]]:
        """Baseline -> metric -> adapter minus baseline, paired by group."""
        ours = self.scores.total(languages)
        found = {}
        for name, scores in self.baselines.items():
            theirs = scores.total(languages)
            both = [metric for metric in ours if metric in theirs]
            found[name] = {metric: paired(ours[metric], theirs[metric], self.seed) for metric in both}
        return found

    def wrong_image_gain(self, languages: list[str] | None = None) -> dict[str, Interval]:
        """Bits per byte with the right image over those with a wrong one, minus 1: below 0 the image helps."""
        if "wrong_image" not in self.baselines:
            return {}
        ours, wrong = self.scores.total(languages), self.baselines["wrong_image"].total(languages)
        bits = [name for name in wrong if wrong[name].metric == "bits_per_byte"]
        return {name: relative(ours[name].sums, wrong[name].sums, ours[name].finish, seed=self.seed) for name in bits}

    def to_json(self) -> dict[str, Any]:
        """The answer of `kauli eval --json`."""
        return {
            "adapter": self.adapter,
            "base": self.base,
            "task": self.task,
            "language": self.languages[0] if len(self.languages) == 1 else list(self.languages),
            "split": self.split,
            "seed": self.seed,
            "examples": self.examples,
            "groups": self.groups,
            "left_out": self.left_out,
            "verdict": asdict(self.verdict),
            "metrics": self.metrics,
            "base_metrics": self.base_metrics,
            **self._beside_baselines(),
            "intervals": self.intervals,
            "base_intervals": {name: one.pair() for name, one in self.base_intervals.items() if one.known},
            "differences": {name: spread(one) for name, one in self.differences.items()},
            "by_source": self._beside(self.scores.by_source, self.base_scores.by_source),
            "by_language": {tag: self._language(tag) for tag in self.languages},
            "english": self.english(),
            "generated": self.generated,
            "signatures": dict(self.signatures),
            "data": dict(self.data),
            "notes": list(self.notes),
        }

    def english(self) -> dict[str, Any] | None:
        """Bits per byte on the English rows of the split: what the adapter forgot; None where not measured."""
        if not self.scores.english:
            return None
        total = merge(list(self.scores.english.values()))
        base = merge(list(self.base_scores.english.values()))
        by_source = self._beside(self.scores.english, self.base_scores.english)
        return {**_pair(total, base, self.seed), "by_source": by_source}

    def summary(self) -> str:
        """A table for the terminal."""
        lines = [self._title(), self.verdict.text, "", *columns(self._metric_rows())]
        for tag in self.languages if self.baselines else ():
            lines += ["", f"{display_name(tag)} beside the baselines", *columns(self._baseline_rows(tag))]
            for name, one in self.wrong_image_gain([tag]).items():
                shown = f"{one.value:+.1%} [{one.low:+.1%}, {one.high:+.1%}]"
                lines.append(f"{name}, the right image against a wrong one: {shown}")
        if len(self.scores.by_source) > 1 or self.scores.english:
            lines += ["", *columns(self._source_rows())]
        return "\n".join([*lines, *(f"note: {text}" for text in self.notes)])

    def _repr_html_(self) -> str:
        """A table for a notebook."""
        rows = [[escape(cell) for cell in row] for row in self._metric_rows()]
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:])
        notes = "".join(f"<p>note: {escape(text)}</p>" for text in self.notes)
        title = f"<p>{escape(self._title())}<br>{escape(self.verdict.text)}</p>"
        return f"{title}<table><tr>{head}</tr>{body}</table>{notes}"

    def _title(self) -> str:
        names = ", ".join(display_name(tag) for tag in self.languages)
        rows_of = f"{self.split} split, {self.examples} examples in {self.groups} groups"
        return f"{self.adapter} on {self.base}: {names}, {rows_of}"

    def _metric_rows(self) -> list[list[str]]:
        base, change = self.base_intervals, self.differences
        rows = [["", "adapter", "95 % interval", "base", "difference", "95 % interval"]]
        for name, one in self.adapter_intervals.items():
            row = [name, format_value(name, one.value), bracket(name, one), format_value(name, base[name].value)]
            row += [format_value(name, change[name].value, sign=True), bracket(name, change[name], sign=True)]
            rows.append(row)
        return rows

    def _baseline_rows(self, tag: str) -> list[list[str]]:
        totals = {name: scores.total([tag]) for name, scores in {"adapter": self.scores, **self.baselines}.items()}
        names = list(dict.fromkeys(metric for total in totals.values() for metric in total))
        rows = [["", *names]]
        for name, total in totals.items():
            rows.append([name, *(format_value(key, total[key].value()) if key in total else "-" for key in names)])
        return rows

    def _source_rows(self) -> list[list[str]]:
        rows = [["bits per byte by source", "adapter", "base"]]
        ours, base = self.scores, self.base_scores
        tables = [("", ours.by_source, base.by_source), ("English: ", ours.english, base.english)]
        for label, of_adapter, of_base in tables:
            for source, one in of_adapter.items():
                both = (one, of_base[source])
                rows.append([label + source, *(format_value(system.metric, system.value()) for system in both)])
        return rows

    def _language(self, tag: str) -> dict[str, Any]:
        return {
            "metrics": self.scores.values([tag]),
            "base_metrics": self.base_scores.values([tag]),
            **(self._beside_baselines([tag]) if self.baselines else {}),
        }

    def _beside_baselines(self, languages: list[str] | None = None) -> dict[str, Any]:
        """The baselines, and whether the adapter uses its image."""
        found: dict[str, Any] = {"baselines": {name: one.values(languages) for name, one in self.baselines.items()}}
        if self.baselines:
            found["baseline_differences"] = {
                name: {metric: spread(one) for metric, one in apart.items()}
                for name, apart in self.against_baselines(languages).items()
            }
            gains = self.wrong_image_gain(languages)
            found["wrong_image_gain"] = {name: spread(one) for name, one in gains.items()}
        return found

    def _beside(self, ours: Tallies, theirs: Tallies) -> dict[str, Any]:
        return {source: _pair(one, theirs[source], self.seed) for source, one in ours.items()}


def _told(metric: str, value: float | None) -> str:
    """A figure in a sentence: "38.1", "7.4 %"."""
    return format_value(metric, value) if value is None or not metric_of(metric).percent else f"{100 * value:.1f} %"


def _unit(metric: str) -> str:
    row = metric_of(metric)
    return row.unit or row.label[0].lower() + row.label[1:]


def paired(ours: Tally, theirs: Tally, seed: int = 0) -> Interval:
    """`ours - theirs` of two systems on the same rows."""
    if ours.groups != theirs.groups:
        raise ValueError(f"{ours.metric}: the two systems were scored on different groups")
    return difference(ours.sums, theirs.sums, ours.finish, seed=seed)


def defined(value: float) -> float | None:
    """NaN as None, which JSON has."""
    return value if math.isfinite(value) else None


def spread(one: Interval) -> dict[str, Any]:
    """An interval as JSON."""
    return {"value": defined(one.value), "interval": one.pair() if one.known else None}


def format_value(metric: str, value: float | None, *, sign: bool = False) -> str:
    """A metric's number with the digits that it deserves, as 2.613 or, for chrF, 38.1; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:{'+' if sign else ''}.{metric_of(metric).digits}f}"


def bracket(metric: str, one: Interval, *, sign: bool = False) -> str:
    """`[low, high]`, or "-" where there is no interval."""
    low, high = (format_value(metric, end, sign=sign) for end in (one.low, one.high))
    return f"[{low}, {high}]" if one.known else "-"


def _intervals(tallies: Tallies, seed: int) -> dict[str, Interval]:
    return {name: interval(one.sums, one.finish, seed=seed) for name, one in tallies.items()}


def _pair(ours: Tally, theirs: Tally, seed: int) -> dict[str, Any]:
    """Bits per byte of both systems."""
    return {
        "adapter": defined(ours.value()),
        "base": defined(theirs.value()),
        "difference": spread(paired(ours, theirs, seed))["interval"],
        "groups": len(ours.groups),
    }


def _store(tallies: Tallies) -> dict[str, Any]:
    return {name: {"metric": one.metric, **one.to_json()} for name, one in tallies.items()}


def _restore(stored: Mapping[str, Any]) -> dict[str, Tally]:
    return {name: tally_from_json(one["metric"], one) for name, one in stored.items()}


def columns(rows: list[list[str]]) -> list[str]:
    """Lines of a table for the terminal: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    aligned = ([cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip() for row, cells in zip(rows, aligned, strict=True)]
