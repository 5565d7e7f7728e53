r"""USFM, the markup of Bible translations: https://docs.usfm.bible/. Markers, references and figures stay.

A segment is the text between two paragraph or verse markers. Notes in it (`\f ... \f*`, `\x ... \x*`) stand in it as
`{f1}`, and their own texts are segments; character styles (`\nd Lord\nd*`) stand in it as tags (`<nd>Lord</nd>`).
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from kauli.models.documents.document import Document, DocumentOptions, Segment
from kauli.models.documents.encoded import Encoding, decoded
from kauli.models.errors import UsageError

_BLOCK = re.compile(
    r"\\(?P<marker>id|ide|sts|rem|usfm|h\d?|toca?\d|mte?\d?|imt\d?|is\d?|ip|ipi|im|ili\d?|iot|io\d?|iex|ie|c|ca|cl|cp|cd|v|va"
    r"|vp|m[is]?\d?|mr|s\d?|sr|r|d|sp|sd\d?|p|pm[ocr]?|po|pr|cls|nb|pc|pi\d?|ph\d?|b|q[rcmd]?\d?|qa|qs|li[mh]?\d?|lf|lh|tr"
    r"|t[hc]r?\d|lit|pb|periph)(?=[\s\\]|$)[ \t]*"
)
_UNTRANSLATED = frozenset(
    ["id", "ide", "sts", "rem", "usfm", "c", "ca", "cp", "va", "vp", "b", "toca1", "toca2", "toca3", "r", "mr", "sr"]
)
_HEADINGS = re.compile(r"^(h\d?|toc\d|mte?\d?|imt\d?|is\d?|s\d?|ms\d?|sp|cl|qa|iot)$")
_NOTE = re.compile(r"\\(f|fe|ef|x|ex)\s.*?\\\1\*", re.DOTALL)
_NOTE_TEXT = re.compile(r"(\\(?:ft|fq|fqa|fl|fp|xt|xo|fk)\s+)([^\\]+)")
_KEPT_NOTES = ("\\xo", "\\xt")  # references
_FIGURE = re.compile(r"\\fig\s.*?\\fig\*", re.DOTALL)
_STYLE = re.compile(r"\\(\+?[a-z]+\d?)[ \t]|\\(\+?[a-z]+\d?)\*")


class Usfm(Document):
    """A book of Scripture."""

    format = "usfm"
    suffixes = (".usfm", ".sfm")

    def __init__(
        self, pieces: list[str], segments: dict[str, tuple[int, Segment]], encoding: Encoding, name: str
    ) -> None:
        """`segments`: id -> (the place of its text in `pieces`, the segment)."""
        self._pieces, self._found, self._encoding, self._name = pieces, segments, encoding, name
        self._filled: dict[str, str] = {}
        self._notes: dict[str, list[str]] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        r"""Raises UsageError for a file without `\id` at its beginning, and for a note that does not end."""
        text, encoding = decoded(data, name, options.encoding)
        if not re.match(r"\s*\\id\s", text):
            raise UsageError(rf"{name} line 1: a USFM file begins with \id and the book's code, such as \id GEN")
        for note in ("f", "x"):
            if len(re.findall(rf"\\{note}\s", text)) != text.count(f"\\{note}*"):
                raise UsageError(rf"{name}: a \{note} has no \{note}*, or the other way round: the file is broken")
        pieces, found, at = list[str](), dict[str, tuple[int, Segment]](), 0
        book, chapter, verse, count = "", "", "", 0
        marks = list(_BLOCK.finditer(text))
        for number, mark in enumerate(marks):
            stop = marks[number + 1].start() if number + 1 < len(marks) else len(text)
            marker, begin = mark["marker"], mark.end()
            if marker in ("c", "v") and (value := re.match(r"\S+[ \t]*", text[begin:stop])):
                chapter, verse = (value[0].strip(), "0") if marker == "c" else (chapter, value[0].strip())
                begin, count = begin + value.end(), 0
            elif marker == "id":
                book = text[begin:stop].split(maxsplit=1)[0] if text[begin:stop].strip() else ""
            body = text[begin:stop]
            words = body.strip()
            if not words or marker in _UNTRANSLATED or not re.search(r"[^\W\d_]", _plain(words)):
                continue
            begin += len(body) - len(body.lstrip())
            pieces += [text[at:begin], words]
            at = begin + len(words)
            count += 1
            where = f"{book} {chapter or '0'}:{verse or '0'}"
            id = f"{len(found)}:{where}#{count}"
            found[id] = (
                len(pieces) - 1,
                Segment(id, _shown(words), context=where, heading=bool(_HEADINGS.match(marker))),
            )
            for place, one in enumerate(_NOTE.finditer(words), 1):
                for part, piece in enumerate(_NOTE_TEXT.finditer(one[0]), 1):
                    if re.search(r"[^\W\d_]", piece[2]) and not piece[1].startswith(_KEPT_NOTES):
                        own = f"{id}/f{place}.{part}"
                        found[own] = (len(pieces) - 1, Segment(own, piece[2].strip(), context=f"{where} note"))
        return cls([*pieces, text[at:]], found, encoding, name)

    @property
    def segments(self) -> Sequence[Segment]:
        """Verses and their parts, headings, and the texts of notes."""
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
        pieces = list(self._pieces)
        for id, (place, _segment) in self._found.items():
            if "/" in id:
                continue
            words = self._pieces[place]
            notes = [self._note(id, number, note[0]) for number, note in enumerate(_NOTE.finditer(words), 1)]
            if id in self._filled:
                pieces[place] = _written(self._filled[id], notes, words)
            elif notes:
                numbered = iter(notes)
                pieces[place] = _NOTE.sub(lambda _: next(numbered), words)  # noqa: B023 - used at once
        return self._encoding.encode("".join(pieces), self._name)

    def _note(self, id: str, number: int, note: str) -> str:
        """A note with what was filled in."""
        count = 0

        def one(match: re.Match[str]) -> str:
            nonlocal count
            count += 1
            text = self._filled.get(f"{id}/f{number}.{count}")
            behind = match[2][len(match[2].rstrip()) :]
            return match[0] if text is None else match[1] + text + behind

        return _NOTE_TEXT.sub(one, note)


def _plain(words: str) -> str:
    return _STYLE.sub("", _FIGURE.sub("", _NOTE.sub("", words)))


def _shown(words: str) -> str:
    """A text as it is translated: `{f1}` for notes, `{fig1}` for figures, tags for styles, in one line."""
    for pattern, name in ((_NOTE, "f"), (_FIGURE, "fig")):
        count = 0

        def one(match: re.Match[str], name: str = name) -> str:
            nonlocal count
            count += 1
            return f"{{{name}{count}}}"

        words = pattern.sub(one, words)
    words = _STYLE.sub(lambda match: f"<{match[1]}>" if match[1] else f"</{match[2]}>", words)
    return " ".join(words.split())


def _written(text: str, notes: Sequence[str], original: str) -> str:
    """The reverse; a note or figure whose mark was lost stands at the end, so that none is lost."""
    text = re.sub(r"<(\+?[a-z]+\d?)>", r"\\\1 ", re.sub(r"</(\+?[a-z]+\d?)>", r"\\\1*", text))
    parts = {f"{{f{place}}}": note for place, note in enumerate(notes, 1)}
    parts |= {f"{{fig{place}}}": one[0] for place, one in enumerate(_FIGURE.finditer(original), 1)}
    for mark, part in parts.items():
        text = text.replace(mark, part, 1) if mark in text else f"{text}{part}"
    return text
