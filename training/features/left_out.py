"""Rows of a split that cannot be used: how many there are, why, and where they are in the user's file."""

from collections import defaultdict
from collections.abc import Callable, Mapping

MOST_NAMED = 3
"""Rows that a note names for one reason; of the others it tells the number."""


class LeftOut:
    """Collects the rows that are left out of a split; `place` is `Dataset.place`."""

    def __init__(self, split: str, place: Callable[[str], str] = str) -> None:
        self.split, self._place = split, place
        self._rows: dict[str, list[str]] = defaultdict(list)

    def add(self, row: str, reason: str, detail: str = "") -> None:
        """Leave out the row with this id. `reason` follows a number ("that can't be read"), `detail` is its own."""
        place = self._place(row)
        self._rows[reason].append(f"{place}: {detail.rstrip('.')}" if detail else place)

    @property
    def counts(self) -> Mapping[str, int]:
        """Reason -> rows."""
        return {reason: len(places) for reason, places in self._rows.items()}

    @property
    def count(self) -> int:
        """All rows that are left out."""
        return sum(self.counts.values())

    def notes(self, kept: int, noun: str = "rows", aside: str = "") -> list[str]:
        """A note for the user beside `kept` rows that are used; none where nothing was left out."""
        if not self._rows:
            return []
        told = []
        for reason, places in sorted(self._rows.items()):
            more = f"; and {len(places) - MOST_NAMED} more" * (len(places) > MOST_NAMED)
            told.append(f"{len(places)} {reason} ({'; '.join(places[:MOST_NAMED])}{more})")
        return [f"{self.split}: {self.count} of {self.count + kept} {noun} left out{aside}: {', '.join(told)}"]
