"""Which rows of a split are measured and which of them are generated: choices that depend on hashes alone."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from kauli.models.metrics import SYNTHETIC
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.scorers import Row, clean

RUNNING_TEXT = 6  # words; fewer are a name
COLUMNS = ["id", "group", "language", "prompt", "text", "source", "synthetic", "split"]


def whole_groups(rows: Sequence[Row], count: int) -> list[Any]:
    """Whole groups, in the order of their hash, until there are `count` rows."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(str(row["group"]).encode()).digest())
    last = ordered[:count][-1]["group"] if ordered else None
    return [row for place, row in enumerate(ordered) if place < count or row["group"] == last]


def some_groups(rows: Sequence[Row], scored: int | None, name: str) -> tuple[list[Any], list[str]]:
    """Whole groups of about `scored` rows (None: all rows) of the split `name`, and the note that says so."""
    if scored is None or len(rows) <= scored:
        return list(rows), []
    chosen = whole_groups(rows, scored)
    return chosen, [f"{name}: measured on {len(chosen)} of {len(rows)} rows"]


def choose(rows: Sequence[Row], limit: int, by: Sequence[str] = ("language",)) -> list[Any]:
    """At most `limit` rows, taken in turn from each stratum (rows alike in the columns `by`), by the hash of the id.

    The choice does not depend on the order of the rows, and a larger limit keeps what a smaller one chose.
    """
    strata: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: hashlib.sha256(str(row["id"]).encode()).digest()):
        strata[tuple(row[column] or "" for column in by)].append(row)
    turns = [(turn, key, row) for key, members in strata.items() for turn, row in enumerate(members)]
    return [row for _, _, row in sorted(turns, key=lambda place: place[:2])[:limit]]


def english_rows(dataset: Dataset, split: str) -> list[dict[str, Any]]:
    """The English rows of the split that tell what a model knows of English: answers to a prompt, and running text.

    A name or caption is left out: without its image nobody can guess it.
    """
    kept = []
    for row in dataset.iter_rows(split=split, languages=["en"], columns=[*COLUMNS, "licence", "image", "audio"]):
        media = row.pop("image"), row.pop("audio")
        written = clean(row["text"] or "") and not row["synthetic"]
        if written and (row["prompt"] or (len(row["text"].split()) >= RUNNING_TEXT and not any(media))):
            kept.append(row)
    return kept


def by_language(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """(language, prefix of its metrics, rows), real and synthetic rows apart."""
    kinds = sorted({(row["language"], bool(row["synthetic"])) for row in rows})
    return [
        (tag, SYNTHETIC if kind else "", [r for r in rows if r["language"] == tag and bool(r["synthetic"]) == kind])
        for tag, kind in kinds
    ]


def source_of(row: Row) -> str:
    """Where a row comes from, in reports."""
    return str(row["source"] or "unnamed")
