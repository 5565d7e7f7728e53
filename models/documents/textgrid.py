"""Praat's TextGrid, long and short: https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html.

The intervals (or points) of one tier are segments. Their translations make a new tier `am@kauli` at the end of the
file; all other tiers keep their bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from kauli.models.documents.document import Annotations, DocumentOptions, Segment
from kauli.models.documents.elan import chosen_tier, new_tier
from kauli.models.documents.encoded import Encoding, decoded
from kauli.models.errors import UsageError

_TOKEN = re.compile(r'"(?:[^"]|"")*"|(?<![^\s=\[:])-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?![^\s\]:?])|<exists>|!.*')


@dataclass
class _Tier:
    kind: str
    name: str
    begin: str
    end: str
    items: list[tuple[list[str], str]] = field(default_factory=list)
    """(times as they are written, text)"""


class TextGrid(Annotations):
    """One tier of a recording's annotations."""

    format = "textgrid"
    suffixes = (".textgrid",)

    def __init__(
        self, text: str, tiers: list[_Tier], count: re.Match[str], tier: _Tier, new: str, encoding: Encoding, name: str
    ) -> None:
        """`count` is the place of the number of tiers; `new` the name of the tier that is added."""
        self._text, self._tiers, self._count, self._tier, self._new = text, tiers, count, tier, new
        self._encoding, self._name = encoding, name
        self._filled: dict[int, str] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for what is no TextGrid, is cut off, or has no clear tier."""
        text, encoding = decoded(data, name, options.encoding)
        tiers, count = _parsed(text, name)
        names = [one.name for one in tiers]
        full = [one.name for one in tiers if any(text.strip() for _, text in one.items)]
        chosen = chosen_tier(options.tier, full, names, name)
        tier = next(one for one in tiers if one.name == chosen)
        return cls(text, tiers, count, tier, new_tier(options.target or "translation", names), encoding, name)

    @property
    def segments(self) -> Sequence[Segment]:
        """The intervals or points of the tier that hold a text."""
        return [
            Segment(str(at), text, self._filled.get(at, ""), "draft" if at in self._filled else "missing")
            for at, (_, text) in enumerate(self._tier.items)
            if text.strip()
        ]

    @property
    def spans(self) -> Sequence[tuple[float, float, str]]:
        """Of intervals; points have no length."""
        found = [(float(times[0]), float(times[-1]), text) for times, text in self._tier.items if text.strip()]
        return [(begin, end, text) for begin, end, text in found if begin < end]

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The text of the new tier at the same time."""
        if not id.isdecimal() or int(id) >= len(self._tier.items):
            raise KeyError(id)
        self._filled[int(id)] = target

    def write(self) -> bytes:
        """The new tier is the last one."""
        if not self._filled:
            return self._encoding.encode(self._text, self._name)
        items = [(times, self._filled.get(at, "")) for at, (times, _) in enumerate(self._tier.items)]
        new = _Tier(self._tier.kind, self._new, self._tier.begin, self._tier.end, items)
        return self._encoding.encode(_with(self._text, self._count, len(self._tiers), new), self._name)


def with_intervals(data: bytes, name: str, tier: str, intervals: Sequence[tuple[float, float, str]]) -> bytes:
    """A TextGrid with one more tier of intervals, which touch each other; `tier` names it, where that is free.

    Raises UsageError for what is no TextGrid.
    """
    text, encoding = decoded(data, name, None)
    tiers, count = _parsed(text, name)
    items = [([f"{begin:.6g}", f"{end:.6g}"], words) for begin, end, words in intervals]
    own = new_tier(tier, [one.name for one in tiers])
    last = items[-1][0][1] if items else "0"
    return encoding.encode(_with(text, count, len(tiers), _Tier("IntervalTier", own, "0", last, items)), name)


def _parsed(text: str, name: str) -> tuple[list[_Tier], re.Match[str]]:
    """The tiers, and the place of their number."""
    # In the long form "[1]:" and "item []:" are no values
    found = (one for one in _TOKEN.finditer(text) if not one[0].startswith("!"))
    tokens = [one for one in found if not _is_number_of_item(text, one)]
    values = [one[0] for one in tokens]
    if values[:2] != ['"ooTextFile"', '"TextGrid"'] or len(values) < 6 or values[4] != "<exists>":
        raise UsageError(f'{name}: it does not begin as a TextGrid does (File type = "ooTextFile")')
    tiers, at = list[_Tier](), 6
    try:
        for _ in range(int(values[5])):
            kind, own, begin, end, count = values[at : at + 5]
            tier, at = _Tier(_string(kind), _string(own), begin, end), at + 5
            width = 3 if tier.kind == "IntervalTier" else 2
            for _ in range(int(count)):
                *times, mark = values[at : at + width]
                [float(one) for one in times]
                tier.items.append((times, _string(mark)))
                at += width
            tiers.append(tier)
        if at != len(values):
            raise ValueError
    except (ValueError, IndexError):
        raise UsageError(f"{name}: its tiers do not match their numbers: the file is cut off or broken") from None
    return tiers, tokens[5]


def _with(text: str, count: re.Match[str], number: int, tier: _Tier) -> str:
    """A file's text with one more tier at its end, in the form of the file."""
    text = text[: count.start()] + str(number + 1) + text[count.end() :]
    end = "\r\n" if "\r\n" in text else "\n"
    return text.rstrip("\r\n ") + end + end.join(_lines(tier, number + 1, "item []:" in text)) + end


def _lines(tier: _Tier, number: int, long: bool) -> list[str]:
    points = tier.kind != "IntervalTier"
    head = [_quoted(tier.kind), _quoted(tier.name), tier.begin, tier.end, str(len(tier.items))]
    names = ["class", "name", "xmin", "xmax", "points: size" if points else "intervals: size"]
    if not long:
        return [*head, *(part for times, text in tier.items for part in (*times, _quoted(text)))]
    out = [f"    item [{number}]:"]
    out += [f"        {name} = {value} " for name, value in zip(names, head, strict=True)]
    inner = ["number", "mark"] if points else ["xmin", "xmax", "text"]
    for at, (times, text) in enumerate(tier.items, 1):
        out.append(f"        {'points' if points else 'intervals'} [{at}]:")
        out += [f"            {name} = {value} " for name, value in zip(inner, [*times, _quoted(text)], strict=True)]
    return out


def _is_number_of_item(text: str, token: re.Match[str]) -> bool:
    return text[token.start() - 1 : token.start()] == "[" and text[token.end() : token.end() + 1] == "]"


def _string(token: str) -> str:
    if not token.startswith('"'):
        raise ValueError(token)
    return token[1:-1].replace('""', '"')


def _quoted(text: str) -> str:
    return '"' + " ".join(text.replace('"', '""').split()) + '"'
