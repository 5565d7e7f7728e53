r"""USFM 3, the markup of Bible translations: https://docs.usfm.bible/. Markers and references stay.

A segment is the text between two paragraph or verse markers. Notes in it (`\f ... \f*`, `\x ... \x*`) stand in it as
`{f1}`, figures as `{fig1}`, milestones and references as `{m1}`; the texts of notes and the captions of figures are
segments of their own. Character styles (`\nd Lord\nd*`) stand in it as tags (`<nd>Lord</nd>`); one with attributes
(`\w gnat|lemma="x"\w*`) has a number and not the attributes (`<w:1>gnat</w:1>`). Texts of `\z` markers stay.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

from kauli.models.documents.document import Document, DocumentOptions, Segment
from kauli.models.documents.encoded import Encoding, decoded
from kauli.models.documents.markers import SHOWN, Book, Place
from kauli.models.errors import UsageError

_BLANKS = re.compile(r"[ \t\r\n]+")
_MARKER = re.compile(r"\\(?=[A-Za-z+*])")

_Filled = Sequence[tuple[Place, str]]
"""Places with their translations, in the order of the text."""


class Usfm(Document):
    """A book of Scripture."""

    format = "usfm"
    suffixes: ClassVar[tuple[str, ...]] = (".usfm", ".sfm")

    def __init__(self, text: str, places: Sequence[tuple[Place, Segment]], encoding: Encoding, name: str) -> None:
        """`places` are in the order of the text; those within a note are behind the one that the note is in."""
        self._text, self._encoding, self._name = text, encoding, name
        self._found = {segment.id: (place, segment) for place, segment in places}
        self._filled: dict[str, str] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        r"""Raises UsageError for a file without `\id` at its beginning, and for a note that does not end."""
        text, encoding = decoded(data, name, options.encoding)
        if not re.match(r"\s*\\id\s", text):
            raise UsageError(rf"{name} line 1: a USFM file begins with \id and the book's code, such as \id GEN")
        return cls(text, list(Book(text, name).places()), encoding, name)

    @property
    def segments(self) -> Sequence[Segment]:
        """Verses and their parts, headings, the texts of notes, and captions."""
        return [
            replace(one, target=self._filled[id], state="draft") if id in self._filled else one
            for id, (_, one) in self._found.items()
        ]

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The translation takes the text's place."""
        if id not in self._found:
            raise KeyError(id)
        self._filled[id] = target

    def write(self) -> bytes:
        """The book with what was filled in."""
        filled = [(self._found[id][0], target) for id, target in self._filled.items()]
        filled.sort(key=_begin)
        return self._encoding.encode(_written(self._text, 0, len(self._text), filled), self._name)


def _begin(one: tuple[Place, str]) -> int:
    return one[0].begin


def _written(text: str, begin: int, end: int, filled: _Filled) -> str:
    """The text between two places with what was filled in."""
    out, at = list[str](), begin
    for number in range(bisect_left(filled, begin, key=_begin), len(filled)):
        place, target = filled[number]
        if place.begin >= end:
            break
        if place.begin >= at:  # else it is in a note of the one before, and written with it
            words = _translated(text, place, target, filled)
            apart = text[place.begin - 1] in " \t\r\n*|" or words.startswith("\\")  # else it would be part of a marker
            out += [text[at : place.begin], "" if apart else " ", words]
            at = place.end
    return "".join([*out, text[at:end]])


def _translated(text: str, place: Place, target: str, filled: _Filled) -> str:
    """A translation with its marks and tags as markers; a mark that it lacks stands at the end, so that it stays."""
    target = _MARKER.sub(r"\\ ", _BLANKS.sub(" ", target).strip(" "))  # a marker of its own would begin a verse
    left = dict(place.marks)
    found = [one for one in SHOWN.finditer(target) if one[0] in left or _style(one[0]) in place.styles]
    paired, out, at, depth = _paired(found), list[str](), 0, 0
    for number, one in enumerate(found):
        words = target[at : one.start()]
        out.append(words.replace("|", "/") if depth else words)  # in a style it would begin the attributes
        at = one.end()
        closes = one[0].startswith("</")
        if one[0].startswith("{"):
            out.append(_marked(text, left.pop(one[0]), filled) if one[0] in left else "")
        elif number in paired:
            depth += -1 if closes else 1
            out.append(place.styles[_style(one[0])][closes])
    return "".join([*out, target[at:], *(_marked(text, one, filled) for one in left.values())])


def _paired(found: Sequence[re.Match[str]]) -> set[int]:
    """Those of the tags that have their other one, in order."""
    pairs, opened = set[int](), list[int]()
    for number, one in enumerate(found):
        if one[0].startswith("<") and not one[0].startswith("</"):
            opened.append(number)
        elif any(_style(found[begin][0]) == _style(one[0]) for begin in opened):
            while _style(found[begin := opened.pop()][0]) != _style(one[0]):
                pass
            pairs |= {begin, number}
    return pairs


def _style(tag: str) -> str:
    return tag.strip("</>")


def _marked(text: str, span: tuple[int, int], filled: _Filled) -> str:
    """What a mark stands for, so that words may follow."""
    begin, end = span
    found = text[begin] + _written(text, begin + 1, end, filled)  # words that begin with the mark begin there too
    return found + " " if re.search(r"\\\+?[A-Za-z][\w-]*$", found) else found
