"""What a memory stores: pairs that a person stands for, and terms; what can't be stored is refused."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from kauli.models.errors import UsageError, whole
from kauli.models.languages import check_tag, likely_tag, nfc
from kauli.models.text.memory_index import plain
from kauli.models.text.memory_table import TEXTS
from kauli.models.text.memory_terms import words

Kind = Literal["pair", "term"]
MOST_CHARACTERS = 10_000
"""Of a source or a target."""


@dataclass(frozen=True)
class Confirmed:
    """A translation that a person stands for."""

    source: str
    target: str
    source_language: str
    """BCP-47 tag."""
    target_language: str
    origin: str = ""
    """Where it is from: a file's name, a segment's id, a translator."""
    kind: Kind = "pair"
    """"term": an entry of the glossary."""


@dataclass(frozen=True)
class Stored(Confirmed):
    """A pair of a memory."""

    id: str = ""
    """Ids sort by the time of addition."""
    added: str = ""
    """ISO 8601, UTC."""


def rows_of(confirmed: Sequence[Confirmed]) -> list[dict[str, str]]:
    """The columns of pairs that are known before they are stored.

    Raises UsageError for a pair that can't be stored, and for a term with two targets.
    """
    rows, terms = [_row(one, place) for place, one in enumerate(confirmed, 1)], dict[str, dict[str, str]]()
    for row in rows:
        other = terms.setdefault(row["key"], row)
        if row["kind"] == "term" and plain(other["target"]) != plain(row["target"]):
            raise UsageError(
                f"the glossary contradicts itself: '{row['source']}' ({row['source_language']} to "
                f"{row['target_language']}) is both '{other['target']}' and '{row['target']}'. Keep one of them."
            )
    return rows


def short_tag(tag: str) -> str:
    """The tag by which pairs are stored and asked for: `am-ET` is `am`. Raises UsageError for what is no tag."""
    return likely_tag(check_tag(tag))


def _row(one: Confirmed, place: int) -> dict[str, str]:
    for side in ("source", "target"):
        text = whole(getattr(one, side), f"the {side} of pair {place}")
        if not text.strip():
            raise UsageError(f"pair {place} has no {side}: give both texts, or leave the pair out")
        if len(text) > MOST_CHARACTERS:
            raise UsageError(f"the {side} of pair {place} has {len(text)} characters, and at most {MOST_CHARACTERS}")
    if one.kind not in ("pair", "term"):
        raise UsageError(f"pair {place} is of the kind '{one.kind}': use pair or term")
    source, target = short_tag(one.source_language), short_tag(one.target_language)
    if source == target:
        raise UsageError(f"pair {place} is from {source} to {target}: give two languages")
    same = " ".join(words(one.source)) if one.kind == "term" else plain(one.source)
    key = hashlib.sha256("\0".join((one.kind, source, target, same)).encode()).hexdigest()[:32]
    own = {**asdict(one), "source": nfc(one.source), "target": nfc(one.target), "key": key}
    return {column: own.get(column, "") for column in TEXTS} | {"source_language": source, "target_language": target}
