"""Plain text: a paragraph a segment. There is no place for a translation beside the text: it replaces it."""

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar, Self

from kauli.models.documents.document import Document, DocumentOptions, Segment
from kauli.models.documents.encoded import Encoding, decoded, lines_of


class Plain(Document):
    """Paragraphs with empty lines between them."""

    format = "text"
    suffixes: ClassVar[tuple[str, ...]] = (".txt",)

    def __init__(self, pieces: list[str], places: list[int], encoding: Encoding, name: str) -> None:
        """`places` are those of `pieces` that are paragraphs."""
        self._pieces, self._places, self._encoding, self._name = pieces, places, encoding, name
        self._filled: dict[int, str] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for bytes that are no text."""
        text, encoding = decoded(data, name, options.encoding)
        pieces, places, kept = list[str](), list[int](), ""
        for filled, lines in groupby(lines_of(text), lambda line: bool(line.strip())):
            part = "".join(lines)
            if filled:
                body = part.strip()
                begin = part.index(body)
                pieces += [kept + part[:begin], body]
                places.append(len(pieces) - 1)
                part, kept = part[begin + len(body) :], ""
            kept += part
        return cls([*pieces, kept], places, encoding, name)

    @property
    def segments(self) -> Sequence[Segment]:
        """The paragraphs."""
        return [
            Segment(
                str(number), self._pieces[place], self._filled.get(number, ""),
                "draft" if number in self._filled else "missing",
            )
            for number, place in enumerate(self._places)
        ]  # fmt: skip

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The translation takes the paragraph's place."""
        if not id.isdecimal() or int(id) >= len(self._places):
            raise KeyError(id)
        self._filled[int(id)] = target

    def write(self) -> bytes:
        """The text with its paragraphs replaced."""
        filled = {self._places[number]: text for number, text in self._filled.items()}
        text = "".join(filled.get(place, piece) for place, piece in enumerate(self._pieces))
        return self._encoding.encode(text, self._name)
