r"""The markers of a USFM text: its words, and what of them is shown in another form.

The names of markers are those of https://docs.usfm.bible/usfm/3.1/. Only markers that begin a paragraph or verse are
listed: one that some `*` ends in the file is a style, and any other one that begins a line is a new paragraph.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kauli.models.documents.document import Segment
from kauli.models.errors import UsageError

_TOKEN = re.compile(r"\\(?:(?P<name>\+?[A-Za-z][\w-]*)(?:(?P<star>\*)|[ \t]?)|\*)", re.ASCII)
"""A marker and the blank behind it, the end of a style, or the end of a milestone."""
_BLOCK = re.compile(
    r"id|ide|sts|rem|usfm|h\d?|toca?\d|restore|imte?\d?|is\d?|ib|im|imi|imq|ip|ipi|ipq|ipr|iq\d?|ili\d?|iot|io\d?|iex|ie"
    r"|c|cl|cp|cd|cls|v|mte?\d?|ms\d?|mr|m|mi|s\d?|sd\d?|sp|sr|sts|r|d|p\d?|pi\d?|ph\d?|pm|pm[ocr]|po|pr|pc|pb|nb|b"
    r"|q[rcmd]?\d?|qa|li[mh]?\d?|lh|lf|lit|tr|t[hc][rc]?\d(?:-\d)?|periph|esbe?"
)
"""Markers of paragraphs, chapters, verses and cells."""
_LINES = frozenset(["id", "ide", "sts", "rem", "usfm"])
"""What they hold is no markup."""
_UNTRANSLATED = _LINES | {"c", "cp", "b", "toca1", "toca2", "toca3", "r", "mr", "sr"}
_HEADING = re.compile(r"h\d?|toc\d|i?mte?\d?|is\d?|s\d?|ms\d?|sp|cl|qa|iot")
_NOTES = frozenset(["f", "fe", "ef", "x", "ex"])
_DEEPEST = 20
"""Notes within notes."""
_NOTE_PART = re.compile(r"f[a-z]+|x[a-z]+")
_KEPT_PARTS = frozenset(["fr", "fv", "fm", "xo", "xop", "xt"])
"""The references of notes."""
_OPAQUE = frozenset(["va", "vp", "ca", "cat", "fig", "fv", "fm", "rq", "xt", "ior"])
"""Styles whose text stays."""
_LETTER = re.compile(r"[^\W\d_]")
_BLANK = " \t\r\n"
_BLANKS = re.compile(r"[ \t\r\n]+")
SHOWN = re.compile(r"\{[a-z]+\d+\}|</?[A-Za-z][\w:.-]*>")
"""What marks and tags look like."""
_NONE: Mapping[str, Any] = {}
_WORD = re.compile(r"[ \t\r\n]*([^\s\\]+)[ \t]*")


class _Token(NamedTuple):
    begin: int
    end: int
    name: str
    """With its `+`, without its `*`; "" for the end of a milestone."""
    closes: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Words in a document, and what of them is shown in another form."""

    begin: int
    end: int
    shown: str
    marks: Mapping[str, tuple[int, int]]
    """Begin and end of what stands as `{m1}`."""
    styles: Mapping[str, tuple[str, str]]
    """What begins and ends the style that stands as a tag."""


@dataclass(slots=True)
class _Piece:
    """A part of words: text, what stands as a mark, or a tag."""

    begin: int
    end: int
    mark: str = ""
    style: str = ""
    """Name of the style that begins or ends here."""
    form: tuple[str, str] = ("", "")
    """What begins and ends the style."""
    closes: bool = False


class Book:
    """Reads the markers of a text."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._tokens = [
            _Token(one.start(), one.end(), one["name"] or "", bool(one["star"])) for one in _TOKEN.finditer(text)
        ]
        self._ended = {one.name for one in self._tokens if one.closes}
        self._last: dict[int, int] = {}
        """Of the tokens that begin a note: the token that ends it."""

    def places(self) -> Iterator[tuple[Place, Segment]]:
        """The segments in their order. Raises UsageError for a note without its end."""
        book, chapter, verse, count, number = "", "0", "0", 0, 0
        blocks = self._blocks()
        for at, (first, last) in enumerate(blocks):
            mark = self._tokens[first]
            begin, marker = mark.end, mark.name
            stop = self._tokens[blocks[at + 1][0]].begin if at + 1 < len(blocks) else len(self._text)
            if marker == "id":
                book = "".join(self._text[begin:stop].split(maxsplit=1)[:1])
            elif marker in ("c", "v") and (value := _WORD.match(self._text, begin, stop)):
                chapter, verse = (value[1], "0") if marker == "c" else (chapter, value[1])
                begin, count = value.end(), 0
            elif marker == "periph" and (attributes := self._text.find("|", begin, stop)) >= 0:
                stop = attributes
            if marker in _UNTRANSLATED or marker.startswith("z"):
                continue
            where = f"{book} {chapter}:{verse}"
            id = f"{number}:{where}#{count + 1}"
            heading = bool(_HEADING.fullmatch(marker))
            found = [
                (place, Segment(id + own, place.shown, context=where + kind, heading=not own and heading))
                for place, own, kind in self._words(first + 1, last, begin, stop)
            ]
            number += len(found)
            count += bool(found)
            yield from found

    def _blocks(self) -> list[tuple[int, int]]:
        """(its token, the token behind its last one) of each paragraph and verse."""
        found, at, line_end = list[int](), 0, -1
        while at < len(self._tokens):
            one = self._tokens[at]
            if one.begin < line_end:
                pass
            elif one.name in _NOTES:
                at = self._note_end(at)
            elif self._is_block(at):
                found.append(at)
                if one.name in _LINES:
                    line_end = self._text.find("\n", one.begin)
                    line_end = len(self._text) if line_end < 0 else line_end
            at += 1
        return list(zip(found, [*found[1:], len(self._tokens)], strict=True))

    def _is_block(self, at: int) -> bool:
        """Whether a token begins a paragraph or verse: a known marker, or one in a new line that no `*` ends."""
        one = self._tokens[at]
        if one.closes or not one.name or one.name.startswith("+"):
            return False
        if _BLOCK.fullmatch(one.name):
            return True
        begin = one.begin
        while begin and self._text[begin - 1] in " \t":
            begin -= 1
        new_line = not begin or self._text[begin - 1] in "\r\n"
        return new_line and one.name not in self._ended and not self._is_milestone(at)

    def _is_milestone(self, at: int) -> bool:
        r"""Whether a token and the one behind it are `\name |attributes\*`."""
        if at + 1 >= len(self._tokens) or self._tokens[at + 1].name or self._tokens[at].closes:
            return False
        between = self._text[self._tokens[at].end : self._tokens[at + 1].begin].lstrip()
        return not between or between.startswith("|")

    def _note_end(self, at: int) -> int:
        """The token that ends a note; notes may be in it."""
        opened = list[int]()
        for place in range(at, len(self._tokens)):
            one = self._tokens[place]
            if one.name not in _NOTES:
                continue
            if not one.closes and len(opened) < _DEEPEST:
                opened.append(place)
            elif not one.closes or not opened or self._tokens[opened[-1]].name != one.name:
                at = opened[-1] if opened else place
                break
            else:
                self._last[opened.pop()] = place
                if not opened:
                    return place
        one = self._tokens[at]
        line = self._text.count("\n", 0, one.begin) + 1
        raise UsageError(
            rf"{self._name} line {line}: a \{one.name} has no \{one.name}*, or the other way round: the file is broken"
        )

    def _words(self, first: int, last: int, begin: int, end: int) -> Iterator[tuple[Place, str, str]]:
        """(place, end of its id, kind) of the words between two places with these tokens, and of the notes in them."""
        if first == last:  # most words; a book has a hundred thousand
            if plain := self._plain(begin, end):
                yield plain, "", ""
            return
        pieces = _trimmed(self._text, self._pieces(first, last, begin, end))
        if any(not one.mark and not one.style and _LETTER.search(self._text, one.begin, one.end) for one in pieces):
            yield _place(self._text, pieces), "", ""
        notes = figures = 0
        for at in self._outer(first, last):
            name = self._tokens[at].name
            if name in _NOTES:
                notes += 1
                for place, own, _ in self._note(at):
                    yield place, f"/f{notes}{own}", " note"
            elif name == "fig" and not self._tokens[at].closes:
                figures += 1
                if caption := self._caption(at):
                    yield caption, f"/fig{figures}", " figure"

    def _outer(self, first: int, last: int) -> Iterator[int]:
        """The tokens that are in no note."""
        at = first
        while at < last:
            yield at
            at = self._last.get(at, at) + 1

    def _pieces(self, first: int, last: int, begin: int, end: int) -> list[_Piece]:
        """The parts of the words between two places with these tokens."""
        ends, out, at = self._ends(first, last), list[_Piece](), begin
        starts = {close: open for open, close in ends.items()}
        token = first
        while token < last:
            one = self._tokens[token]
            if token in starts:
                bar = self._text.find("|", at, one.begin)
                out.append(_Piece(at, bar if bar >= 0 else one.begin))
                out.append(_Piece(one.begin, one.end, style=one.name.lstrip("+"), closes=True))
                at, token = one.end, token + 1
                continue
            out.append(_Piece(at, one.begin))
            stop, mark = token, "m"
            if one.name in _NOTES:
                stop, mark = self._last[token], "f"
            elif token not in ends and self._is_milestone(token):
                stop = token + 1
            elif token in ends and one.name.lstrip("+") in _OPAQUE:
                stop, mark = ends[token], "fig" if one.name == "fig" else "m"
            elif token in ends:
                out.append(_Piece(one.begin, one.end, style=one.name.lstrip("+"), form=self._form(token, ends[token])))
                at, token = one.end, token + 1
                continue
            at = self._tokens[stop].end
            out.append(_Piece(one.begin, at, mark))
            token = stop + 1
        return [one for one in [*out, _Piece(at, end)] if one.begin < one.end]

    def _ends(self, first: int, last: int) -> dict[int, int]:
        """The styles that have an end: token -> the token that ends it."""
        if last - first < 2:
            return {}
        found, opened, names = dict[int, int](), list[int](), Counter[str]()
        for at in self._outer(first, last):
            one = self._tokens[at]
            if not one.closes:
                opened.append(at)
                names[one.name] += 1
            elif names[one.name]:
                while True:
                    begin = opened.pop()
                    names[self._tokens[begin].name] -= 1
                    if self._tokens[begin].name == one.name:
                        break
                found[begin] = at
        return found

    def _form(self, begin: int, end: int) -> tuple[str, str]:
        """What begins and ends a style: its markers, with its attributes."""
        opened, closed = self._tokens[begin], self._tokens[end]
        bar = self._text.find("|", self._tokens[end - 1].end, closed.begin)
        return f"\\{opened.name} ", self._text[bar if bar >= 0 else closed.begin : closed.end]

    def _note(self, at: int) -> Iterator[tuple[Place, str, str]]:
        """The texts of a note: each part that is no reference."""
        last = self._last[at]
        ends = self._ends(at + 1, last)
        begin, first, kept = self._tokens[at].end, at + 1, False
        if caller := _WORD.match(self._text, begin, self._tokens[at + 1].begin):
            begin = caller.end()
        part, hidden = 0, -1
        for token in [*self._outer(at + 1, last), last]:
            one = self._tokens[token]
            if token <= hidden:
                continue
            if token != last and token in ends and one.name in _OPAQUE:
                hidden = ends[token]
                continue
            if token == last or _NOTE_PART.fullmatch(one.name):
                found = [] if kept else list(self._words(first, token, begin, one.begin))
                part += bool(found)
                for place, own, kind in found:
                    yield place, f".{part}{own}", kind
                begin, first, kept = one.end, token + 1, one.name in _KEPT_PARTS and not one.closes

    def _caption(self, at: int) -> Place | None:
        r"""The caption of a figure: before its attributes, or the sixth of the fields that USFM 2 has."""
        if at + 1 >= len(self._tokens) or self._tokens[at + 1].name != "fig":
            return None
        begin, end = self._tokens[at].end, self._tokens[at + 1].begin
        fields = self._text[begin:end].split("|")
        if len(fields) == 7 and "=" not in fields[1]:
            begin += sum(map(len, fields[:5])) + 5
            end = begin + len(fields[5])
        else:
            end = begin + len(fields[0])
        return self._plain(begin, end)

    def _plain(self, begin: int, end: int) -> Place | None:
        """Words without a marker in them; None without a letter."""
        words = self._text[begin:end].rstrip(_BLANK)
        kept = words.lstrip(_BLANK)
        begin += len(words) - len(kept)
        if not _LETTER.search(kept):
            return None
        return Place(begin, begin + len(kept), _BLANKS.sub(" ", kept), _NONE, _NONE)


def _trimmed(text: str, pieces: Sequence[_Piece]) -> list[_Piece]:
    """The pieces without the blanks and the milestones at both ends."""
    first, last = 0, len(pieces)
    while first < last:
        one = pieces[first]
        words = text[one.begin : one.end]
        if one.style or one.mark not in ("", "m"):
            break
        if not one.mark and (kept := words.lstrip(_BLANK)):
            one.begin = one.end - len(kept)
            break
        first += 1
    while first < last:
        one = pieces[last - 1]
        words = text[one.begin : one.end]
        if one.style or one.mark not in ("", "m"):
            break
        if not one.mark and (kept := words.rstrip(_BLANK)):
            one.end = one.begin + len(kept)
            break
        last -= 1
    return list(pieces[first:last])


def _place(text: str, pieces: Sequence[_Piece]) -> Place:
    """The words of these pieces; a style has a number where another one of its name has other markers or attributes."""
    forms: dict[str, set[tuple[str, str]]] = {}
    for one in pieces:
        if one.style and not one.closes:
            forms.setdefault(one.style, set()).add(one.form)
    plain = [text[one.begin : one.end] for one in pieces if not one.mark and not one.style]
    taken = {found for words in plain if "{" in words or "<" in words for found in SHOWN.findall(words)}
    numbered = {name for name, found in forms.items() if len(found) > 1 or any("|" in end for _, end in found)}
    numbered |= {name for name in forms if f"<{name}>" in taken or f"</{name}>" in taken}
    out, opened, counts = list[str](), list[str](), Counter[str]()
    marks, styles = dict[str, tuple[int, int]](), dict[str, tuple[str, str]]()
    for one in pieces:
        if one.mark:
            counts[one.mark] += 1
            while f"{{{one.mark}{counts[one.mark]}}}" in taken:
                counts[one.mark] += 1
            out.append(f"{{{one.mark}{counts[one.mark]}}}")
            marks[out[-1]] = one.begin, one.end
        elif one.closes:
            out.append(f"</{opened.pop()}>")
        elif one.style:
            counts[f"<{one.style}"] += 1
            opened.append(f"{one.style}:{counts[f'<{one.style}']}" if one.style in numbered else one.style)
            styles[opened[-1]] = one.form
            out.append(f"<{opened[-1]}>")
        else:
            out.append(text[one.begin : one.end])
    return Place(pieces[0].begin, pieces[-1].end, _BLANKS.sub(" ", "".join(out)).strip(_BLANK), marks, styles)
