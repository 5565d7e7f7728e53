"""Subtitles: SubRip (.srt) and WebVTT (.vtt, https://www.w3.org/TR/webvtt1/). Times, settings and notes stay."""

import re
from collections.abc import Sequence
from typing import ClassVar, Self

from kauli.models.documents.document import DocumentOptions, Segment
from kauli.models.documents.encoded import decoded
from kauli.models.documents.plain import Plain
from kauli.models.errors import UsageError

_LINE_LENGTH = 42  # characters, as television has it
_TIME = re.compile(r"^[^\S\r\n]*(?:\d+:)?\d{1,2}:\d{2}[,.]\d{1,3}[^\S\r\n]*-->[^\r\n]*(?:\r\n|\n|\r)", re.MULTILINE)


class SubRip(Plain):
    """A cue is a segment; its lines are joined for translation, and the translation is wrapped into as many."""

    format = "srt"
    suffixes: ClassVar[tuple[str, ...]] = (".srt",)
    begins: ClassVar[str] = ""

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for a file without cues."""
        text, encoding = decoded(data, name, options.encoding)
        if not text.startswith(cls.begins):
            raise UsageError(f"{name} line 1: a WebVTT file begins with {cls.begins}")
        times = list(_TIME.finditer(text))
        if not times and text.replace(cls.begins, "", 1).strip():
            raise UsageError(
                f"{name}: no line has times, such as 00:00:01,000 --> 00:00:02,500: it is no subtitle file"
            )
        pieces, places, at = list[str](), list[int](), 0
        for time, following in zip(times, [*(one.start() for one in times[1:]), len(text)], strict=False):
            spoken = cls._spoken(text[time.end() : following], following == len(text))
            if not spoken:
                continue
            pieces += [text[at : time.end()], spoken]
            places.append(len(pieces) - 1)
            at = time.end() + len(spoken)
        return cls([*pieces, text[at:]], places, encoding, name)

    @classmethod
    def _spoken(cls, body: str, last: bool) -> str:
        """The text of a cue, of all that stands before the next one's times: it may hold empty lines."""
        body = body.rstrip()
        return body if last else re.sub(r"(?:^|[\r\n]+)[^\S\r\n]*\d+$", "", body).rstrip()  # the next one's number

    @property
    def segments(self) -> Sequence[Segment]:
        """The cues, each in one line."""
        return [
            Segment(one.id, " ".join(one.source.split()), one.target, one.state) for one in super().segments
        ]  # fmt: skip

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The translation has as many lines as the cue had, or as it needs."""
        if not id.isdecimal() or int(id) >= len(self._places):
            raise KeyError(id)
        cue = self._pieces[self._places[int(id)]]
        end = "\r\n" if "\r\n" in cue or "\r\n" in self._pieces[0] else "\n"
        lines = max(len(cue.splitlines()), -(-len(target) // _LINE_LENGTH))
        super().fill(id, end.join(_wrapped(target, lines)), draft=draft, note=note)


class WebVtt(SubRip):
    """The same with the header WEBVTT."""

    format = "vtt"
    suffixes = (".vtt",)
    begins = "WEBVTT"

    @classmethod
    def _spoken(cls, body: str, last: bool) -> str:
        """An empty line ends a cue: what follows may be a note, or the next cue's name."""
        found = re.match(r"(?:[^\S\r\n]*\S[^\r\n]*(?:\r\n|\n|\r|$))*", body)
        assert found is not None  # it matches an empty text
        if found.end() == len(body) and not last:
            return super()._spoken(body, last)
        return found[0].rstrip()


def _wrapped(text: str, lines: int) -> list[str]:
    """A text in at most so many lines of like length, cut between words."""
    words = text.split()
    length = -(-len(" ".join(words)) // max(1, lines))
    out: list[str] = []
    for word in words:
        if out and (len(out[-1]) + 1 + len(word) <= length + len(word) // 2 or len(out) == lines):
            out[-1] += f" {word}"
        else:
            out.append(word)
    return out
