"""Readable subtitles: a transcript's words as cues of two short lines, in SubRip and WebVTT.

The limits are those of Netflix's timed text style guide and the BBC's subtitle guidelines: two lines of 42 characters,
7 seconds at most, and at least one where there is room.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import regex

from kauli.models.speech.chunking import Segment, ends_sentence, spaced_apart

LINE = 42
"""Graphemes of a line; a cue has two lines."""
LONGEST_CUE, SHORTEST_CUE = 7.0, 1.0
"""Seconds."""
_TICK = 0.1  # seconds: the shortest time that a viewer notices
_PAUSE = 0.3  # between words: as good a place to break as a comma
_LONG_PAUSE = 1.0  # ends a cue

# Costs of a cue; the partition of least cost is taken
_BETWEEN_WORDS, _AT_COMMA = 1.0, 0.4  # to end within a sentence, in addition to the 1 of every cue
_TOO_SHORT = 0.8
_UNEVEN = 0.2  # to leave all of a cue's room unused

_NATURAL = 8  # graphemes by which a line may be longer to end with a sentence or a comma

_COMMA = regex.compile(r"[,;:،؛、，；：፣፤፥\p{Pd}]\W*$")


@dataclass(frozen=True)
class Cue:
    """The lines shown from `start` to `end`, in seconds."""

    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """A word in its line, or a part of a word that is longer than a line."""

    text: str
    spaced: bool
    """Whether a space precedes it."""
    start: float
    end: float
    size: int
    """Graphemes, without the space."""


def cues(segments: Sequence[Segment]) -> list[Cue]:
    """The words of segments as cues that do not overlap; together they have the whole text of the segments.

    A cue ends with a sentence, else at a comma or a pause, else between words. A short cue is extended where the next
    one does not follow at once.
    """
    pieces = _pieces(segments)
    text = _Text(pieces)
    parts = text.parts()
    out: list[Cue] = []
    for at, (first, end) in enumerate(parts):
        next_start = pieces[parts[at + 1][0]].start if at + 1 < len(parts) else max(segments[-1].end, pieces[-1].end)
        begin = max(pieces[first].start, out[-1].end if out else 0.0)
        stop = max(pieces[end - 1].end, min(begin + SHORTEST_CUE, next_start), begin + _TICK)
        out.append(Cue(begin, min(stop, begin + LONGEST_CUE), text.lines(first, end)))
    return out


def as_srt(shown: Sequence[Cue]) -> str:
    """The cues as SubRip subtitles."""
    # Nothing can be escaped in this format
    texts = ["\n".join(regex.sub("-{2,}>", "->", line) for line in cue.lines) for cue in shown]
    times = [f"{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}" for cue in shown]
    return "\n".join(
        f"{number}\n{time}\n{text}\n" for number, (time, text) in enumerate(zip(times, texts, strict=True), 1)
    )


def as_vtt(shown: Sequence[Cue]) -> str:
    """The cues as WebVTT subtitles (W3C, WebVTT: The Web Video Text Tracks Format, section 4.1)."""
    texts = ["\n".join(html.escape(line, quote=False) for line in cue.lines) for cue in shown]
    times = [f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}" for cue in shown]
    return "\n".join(["WEBVTT\n", *(f"{time}\n{text}\n" for time, text in zip(times, texts, strict=True))])


def _pieces(segments: Sequence[Segment]) -> list[_Piece]:
    found: list[_Piece] = []
    for segment in segments:
        place = 0
        for word in segment.words:
            begin = segment.text.index(word.text, place)
            spaced = begin > place if place else not found or spaced_apart(found[-1].text, word.text)
            place = begin + len(word.text)
            letters = regex.findall(r"\X", " ".join(word.text.split()))
            parts = [letters[at : at + LINE] for at in range(0, len(letters), LINE)]
            share = (word.end - word.start) / len(parts)
            for at, part in enumerate(parts):
                start = word.start + at * share
                found.append(_Piece("".join(part), spaced and not at, start, start + share, len(part)))
    return found


class _Text:
    """Pieces in their order, and their best partition into cues."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces
        self._before = list(accumulate((piece.size + piece.spaced for piece in pieces), initial=0))
        self._reach: list[int] = []
        """For each piece the end of the longest line that starts with it."""
        end = 0
        for begin in range(len(pieces)):
            while end < len(pieces) and self._size(begin, end + 1) <= LINE:
                end += 1
            self._reach.append(end)

    def parts(self) -> list[tuple[int, int]]:
        """The first piece of each cue and the one after its last, by the partition of least cost."""
        least, begins = [0.0], [0]
        for end in range(1, len(self._pieces) + 1):
            ways = [(least[end - 1] + self._cost(end - 1, end), end - 1)]
            for begin in range(end - 2, -1, -1):
                if not self._fits(begin, end):
                    break
                ways.append((least[begin] + self._cost(begin, end), begin))
            cost, begin = min(ways)
            least.append(cost)
            begins.append(begin)
        found = []
        end = len(self._pieces)
        while end:
            found.append((begins[end], end))
            end = begins[end]
        return found[::-1]

    def lines(self, begin: int, end: int) -> tuple[str, ...]:
        """The text of a cue: one line where it fits, else two of about the same length."""
        if self._size(begin, end) <= LINE:
            return (self._line(begin, end),)
        _, at = min((self._unevenness(begin, at, end), at) for at in range(begin + 1, end))
        return self._line(begin, at), self._line(at, end)

    def _unevenness(self, begin: int, at: int, end: int) -> int:
        longest = max(self._size(begin, at), self._size(at, end))
        if longest > LINE:
            return longest
        last = self._pieces[at - 1].text
        return longest - _NATURAL * bool(ends_sentence(last) or _COMMA.search(last))

    def _fits(self, begin: int, end: int) -> bool:
        """Whether these pieces fit a cue, given that they fit without the first."""
        first, second, last = self._pieces[begin], self._pieces[begin + 1], self._pieces[end - 1]
        if second.start - first.end > _LONG_PAUSE or last.end - first.start > LONGEST_CUE:
            return False
        reach = self._reach[begin]
        return reach >= end or self._size(reach, end) <= LINE

    def _cost(self, begin: int, end: int) -> float:
        cost = 1 + _UNEVEN * (1 - self._size(begin, end) / (2 * LINE)) ** 2
        if end == len(self._pieces):
            return cost
        last, follows = self._pieces[end - 1], self._pieces[end].start
        if not ends_sentence(last.text):
            cost += _AT_COMMA if _COMMA.search(last.text) or follows - last.end >= _PAUSE else _BETWEEN_WORDS
        return cost + _TOO_SHORT * (follows - self._pieces[begin].start < SHORTEST_CUE)

    def _size(self, begin: int, end: int) -> int:
        return self._before[end] - self._before[begin] - self._pieces[begin].spaced

    def _line(self, begin: int, end: int) -> str:
        return "".join(" " * piece.spaced + piece.text for piece in self._pieces[begin:end]).strip()


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
