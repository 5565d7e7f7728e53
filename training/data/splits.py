"""Groups and splits of imported rows: rows that share content are a group, and a group is in one split."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kauli.models.errors import UsageError
from kauli.models.progress import note
from kauli.training.data.findings import places
from kauli.training.data.groups import STRONGEST_FIRST, Groups, shared_keys, short_hash, split_by_chance, strongest
from kauli.training.data.options import Leaks
from kauli.training.data.schema import MEDIA

LEFT_OUT = "share a text, image or audio with validation or test rows and were left out"
"""In the note about rows that would leak."""


def in_groups(rows: Sequence[dict[str, Any]], leaks: Leaks, path: Path) -> list[dict[str, Any]]:
    """The rows with a group for those that share content, and a split for each group; media have a `sha256`.

    Rows whose group is in another split are left out, with a note. Raises UsageError where there are too few groups.
    """
    hashes = [{name: row[name].sha256 if row[name] else None for name in MEDIA} for row in rows]
    shared = shared_keys([{**row, **media} for row, media in zip(rows, hashes, strict=True)], leaks)
    groups = Groups()
    for row, keys in zip(rows, shared, strict=True):
        groups.link([f"row:{row['id']}", *keys])
    by_root = defaultdict(list)
    for row in rows:
        by_root[groups.find(f"row:{row['id']}")].append(row)
    given = any(row["split"] for row in rows)
    dropped: list[str] = []
    united: list[dict[str, Any]] = []
    for root, members in sorted(by_root.items()):
        sides = {row["split"] for row in members if row["split"]}
        split = strongest(sides) if sides else split_by_chance(root)
        kept = [row for row in members if row["split"] in (None, split)]
        dropped += [row["place"] for row in members if row["split"] not in (None, split)]
        for row in kept:
            row["group"], row["split"] = short_hash(root), split
        united += kept
    if dropped:
        note(
            f"{path}: {len(dropped):,} rows of train or validation {LEFT_OUT} ({places(dropped)}); --leaks pair or "
            "data_options.leaks keeps more"
        )
    if not given:
        _fill_splits(united, path)
    return united


def _fill_splits(rows: list[dict[str, Any]], path: Path) -> None:
    """Give a split that chance left empty, as happens in small data sets, the groups with the smallest hashes."""
    groups = sorted({row["group"] for row in rows}, key=lambda group: short_hash("fill", group))
    if len(groups) < 3:
        raise UsageError(
            f"{path} can't be split: its {len(rows):,} rows fall into {len(groups)} group(s) that share texts or media."
            " Give more different rows, a `split` column, or --leaks pair (in a recipe data_options.leaks)."
        )
    share = max(1, len(groups) // 12)
    for split in ("test", "validation", "train"):
        if not any(row["split"] == split for row in rows):
            by_group = {row["group"]: row["split"] for row in rows}
            sizes = Counter(by_group.values())
            largest = max(STRONGEST_FIRST[::-1], key=sizes.__getitem__)
            moved = set([group for group in groups if by_group[group] == largest][:share])
            for row in rows:
                row["split"] = split if row["group"] in moved else row["split"]
