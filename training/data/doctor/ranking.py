"""The rows of a data set by how suspicious they are: what all signals say of a row, in one score.

The score is a noisy-or (Pearl 1988, "Probabilistic Reasoning in Intelligent Systems"): one minus the product of what
each signal leaves. Each signal's strength is what it alone would make a mistake's probability; signals that say the
same thing twice are taken once, the strongest of them.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from kauli.models.bases.find import find_base
from kauli.models.progress import bar, kept_notes
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.doctor.examined import Examined, Finding
from kauli.training.data.doctor.table import SIGNALS
from kauli.training.data.options import DataOptions
from kauli.training.data.splits import LEFT_OUT

LEAST_SCORE = 0.2
"""Rows below it are not listed."""


@dataclass(frozen=True)
class Suspect:
    """A suspicious row."""

    id: str
    score: float
    """In [0, 1]."""
    reasons: tuple[str, ...]
    """The strongest first."""

    def to_json(self) -> dict[str, Any]:
        """`id`, `score`, `reasons`."""
        return {**asdict(self), "reasons": list(self.reasons)}


def doctor(
    path: str, language: str | None = None, base: str | None = None, options: DataOptions | None = None
) -> tuple[Dataset, list[Suspect]]:
    """The data set at a path, with the rows that an import would leave out, and its suspects, the worst first.

    Args:
        path: a data set's name, a file, a folder or a URI.
        language: of rows that name none, and the only one that is looked at; None: all.
        base: a base for `align`, for better signals of labels, images and translations; None: none.
        options: how files are read.

    Raises UsageError for no data, an unknown language or base, a base of another task, and too few rows.
    """
    options = options or DataOptions()
    found = find_base(base, task="align") if base else None
    wanted = [language] if language else None
    with kept_notes() as notes:
        dataset = load_data(path, wanted, options)
    left_out: Collection[str] = ()
    if any(LEFT_OUT in text for text in notes):
        kept = {row["id"] for row in dataset.iter_rows(columns=("id",))}
        dataset = load_data(path, wanted, options.model_copy(update={"leaks": "group"}))
        left_out = [row["id"] for row in dataset.iter_rows(columns=("id",)) if row["id"] not in kept]
    return dataset, suspects(Examined(dataset, found, tuple(left_out)))


def suspects(examined: Examined) -> list[Suspect]:
    """The suspicious rows, the worst first, rows of one score by id."""
    by_row: dict[int, list[Finding]] = defaultdict(list)
    with bar("Looking for suspicious rows", len(SIGNALS)) as advance:
        for signal in SIGNALS.values():
            best: dict[int, Finding] = {}
            for finding in signal(examined):
                if finding.row not in best or finding.strength > best[finding.row].strength:
                    best[finding.row] = finding
            for place, finding in best.items():
                by_row[place].append(finding)
            advance()
    found = []
    for place, findings in by_row.items():
        score = 1 - prod(1 - one.strength for one in findings)
        if score >= LEAST_SCORE:
            reasons = [one.reason for one in sorted(findings, key=lambda one: -one.strength)]
            found.append(Suspect(examined.rows[place]["id"], round(score, 4), tuple(reasons)))
    return sorted(found, key=lambda one: (-one.score, one.id))


def render(dataset: Dataset, found: list[Suspect], most: int) -> str:
    """The suspects for a reader: a score, a place, and a line a reason."""
    rows = sum(1 for _ in dataset.iter_rows(columns=("id",)))
    lines = [f"{dataset.name}: {len(found):,} of {rows:,} rows look suspicious"]
    for one in found[:most]:
        place = dataset.place(one.id)
        lines.append(f"  {one.score:.2f}  {one.id}{f'  ({place})' if place != one.id else ''}")
        lines += [f"        {reason}" for reason in one.reasons]
    if len(found) > most:
        lines.append(f"  and {len(found) - most:,} more: --limit N, or --json for all")
    return "\n".join(lines)
