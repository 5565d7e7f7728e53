"""What the doctor looks at: the rows of a data set, their groups and folds, what they teach, their seconds."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kauli.models.bases.find import Base
from kauli.models.errors import UsageError
from kauli.models.media.decode import content_key
from kauli.training.data.dataset import Dataset
from kauli.training.data.groups import LEAST_REPEATED, Groups, normalise, shared_keys
from kauli.training.data.media_check import media_facts
from kauli.training.data.schema import MEDIA

Row = dict[str, Any]
Floats = NDArray[np.float64]
FOLDS = 5
LEAST_ROWS = 10
"""Rows below which no row can be unusual among the others."""
LEAST_TEXTS = 20
"""Rows of a language from which a model of them can be fitted."""


@dataclass(frozen=True)
class Finding:
    """What one signal says of one row."""

    row: int
    """Its place in `Examined.rows`."""
    strength: float
    """In [0, 1]: how probable a mistake is by this signal alone."""
    reason: str
    """A short sentence with the figure."""


class Examined:
    """The rows of a data set with what several signals ask of them. N: number of rows."""

    def __init__(self, dataset: Dataset, base: Base | None = None, left_out: Sequence[str] = ()) -> None:
        """`left_out` are the ids of rows that an import leaves out, since they share content with another split.

        Raises UsageError for fewer than LEAST_ROWS rows.
        """
        self.dataset, self.base, self.left_out = dataset, base, frozenset(left_out)
        self.rows: list[Row] = []
        for row in dataset.iter_rows(columns=dataset_columns()):
            media = {name: content_key(row[name]) if row[name] else None for name in MEDIA}
            self.rows.append({**row, **media, "media": tuple(media.values())})
        if len(self.rows) < LEAST_ROWS:
            raise UsageError(
                f"{dataset.name} has {len(self.rows)} rows in {', '.join(dataset.languages)}: at least {LEAST_ROWS} "
                "are needed to tell which of them is unusual."
            )

    @cached_property
    def groups(self) -> list[str]:
        """(N,) the name of the rows that a row shares content with: no model scores a group that it has seen."""
        groups = Groups()
        for number, keys in enumerate(shared_keys(self.rows, "content")):
            groups.link([f"row:{number}", *keys])
        return [groups.find(f"row:{number}") for number in range(len(self.rows))]

    @cached_property
    def folds(self) -> NDArray[np.int64]:
        """(N,) the fold of each row, 0 to FOLDS - 1: whole groups, the largest first into the smallest fold."""
        sizes = Counter(self.groups)
        load, place = [0] * FOLDS, dict[str, int]()
        order = np.random.default_rng(0).permutation(len(sizes))
        names = [sorted(sizes)[at] for at in order]
        for name in sorted(names, key=lambda one: -sizes[one]):
            place[name] = load.index(min(load))
            load[place[name]] += sizes[name]
        return np.array([place[name] for name in self.groups])

    @cached_property
    def by_language(self) -> Mapping[str, list[int]]:
        """Language -> the places of its rows with a text that is no label."""
        found = defaultdict(list)
        for number, row in enumerate(self.rows):
            if row["text"] and number not in self.labelled:
                found[row["language"]].append(number)
        return found

    @cached_property
    def labelled(self) -> dict[int, str]:
        """Place -> label, of the rows whose texts are names of classes: few, and each repeated for different inputs."""
        found: dict[int, str] = {}
        languages = {row["language"] for row in self.rows}
        for tag in languages:
            asked = {
                number: normalise(row["text"])
                for number, row in enumerate(self.rows)
                if row["language"] == tag and row["text"] and not row["audio"] and (row["prompt"] or row["image"])
            }
            counts = Counter(asked.values())
            if len(counts) >= 2 and LEAST_REPEATED * len(counts) <= counts.total():
                found |= asked
        return found

    @cached_property
    def pairs(self) -> list[int]:
        """Places of the rows that are a translation of their `input`."""
        return [number for number, row in enumerate(self.rows) if row["input"] and row["text"]]

    @cached_property
    def seconds(self) -> dict[int, float]:
        """Place -> the seconds of its clip, of rows with a clip that can be heard and a text."""
        if not any(row["audio"] for row in self.rows):
            return {}
        facts = media_facts(self.dataset, "audio")
        found = {}
        for number, row in enumerate(self.rows):
            one = facts.get(row["id"])
            if row["text"] and one is not None and one.seconds:
                found[number] = one.seconds
        return found

    def folds_of(self, places: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(places to learn from, places to score) of each fold that has rows among `places`; both index `places`."""
        own = self.folds[np.asarray(places, dtype=np.int64)]
        for fold in range(FOLDS):
            inside, outside = np.flatnonzero(own == fold), np.flatnonzero(own != fold)
            if len(inside) and len(outside):
                yield outside, inside


def dataset_columns() -> tuple[str, ...]:
    """The columns that are read."""
    return (
        "id", "group", "language", "prompt", "input", "input_language", "text", "image", "audio", "split",
    )  # fmt: skip
