"""Long recordings: cut into spans that a recogniser hears at once; their transcripts as one text, or as subtitles."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from kauli.models.languages import nfc
from kauli.models.media import RATE

LONGEST = 28.0
"""Seconds of a span for Whisper, which hears 30."""

Stretch = tuple[int, int]
"""The first sample of something, and the one behind its last."""
Floats = npt.NDArray[np.floating]

_FRAME = RATE // 50
_PAUSE = 15 * _FRAME  # 0.3 s: the stops within and between words are shorter
_LONG_SILENCE = RATE  # what is longer is left out at both ends of a span: Whisper invents words in silence
_KEPT_SILENCE = RATE // 2  # of it beside the speech, for the soft sounds that words may begin and end with

_QUIETEST = -80.0  # dB of full scale; digital silence counts as this
_LEAST_RANGE = 10.0  # dB from the noise to the speech; where it is less nothing is called a pause
_SHARE_OF_RANGE = 0.2  # of it above the noise a frame is still a pause, and
_BELOW_SPEECH = 40.0  # so far under the speech it always is

_UNITS_A_SECOND = 10  # words, or characters of scripts without spaces, in very fast speech
_LEAST_EVIDENCE = 2.0  # letters in common, less those that differ, that make two stretches the same words
# Scripts that put no space between words
_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}"
)
_UNIT = regex.compile(rf"(?=[{_UNSPACED}])\X|[^\s{_UNSPACED}]+")
_JOINED = regex.compile(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uff65]")


@dataclass(frozen=True)
class Span:
    """A part of a recording, in seconds from its beginning."""

    start: float
    end: float

    def of(self, samples: Any) -> Any:
        """The span's part of the recording's samples (n,)."""
        return samples[round(self.start * RATE) : round(self.end * RATE)]


@dataclass(frozen=True)
class Segment:
    """What was said from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def cut(samples: Any, longest: float, overlap: float = 2.0) -> list[Span]:
    """The spans of a recording, none longer than `longest`, in their order; between them there is only silence.

    They end in the longest pause of the last third of what may be heard at once, else in one of the thirds before.
    Where nobody pauses for so long, a span ends anywhere, and the next begins `overlap` before: a word that is cut in
    half in one of them is whole in the other. More than a second of silence before and after a span is left out.

    Args:
        samples: (n,) float32 at 16 kHz.
        longest: seconds.
        overlap: seconds, fewer than `longest`.
    """
    if not 0 <= overlap < longest:
        raise ValueError(f"spans of {longest:g} seconds can't overlap by {overlap:g}")
    most, shared = int(longest * RATE), int(overlap * RATE)
    pauses, silences = _quiet(samples)
    spoken = end = len(samples)
    if silences and silences[-1][1] == end:
        spoken, end = silences[-1][0] + _PAUSE // 2, _without_silence(silences, end)
    spans: list[Span] = []
    start = heard = 0
    while True:
        start = next((stop - _kept(stop - start) for begin, stop in silences if begin <= start < stop), start)
        if spoken - start <= most:
            return [*spans, Span(start / RATE, min(end, start + most) / RATE)]
        pause = _best_pause(pauses, start, start + most, heard)
        if pause is None:
            heard = start + most
            spans.append(Span(start / RATE, heard / RATE))
            start = heard - shared
        else:
            heard = sum(pause) // 2
            spans.append(Span(start / RATE, _without_silence(silences, heard) / RATE))
            start = heard


def join(texts: Sequence[str], spans: Sequence[Span]) -> list[Segment]:
    """The transcripts of a recording's spans as segments that don't overlap; an empty one gives none.

    What two overlapping spans both heard is said once. There a span's last word and the next one's first may be cut in
    half and so heard wrongly: the words that are alike on both sides decide where the one goes over into the other.
    """
    said = [nfc(text).strip() for text in texts]
    times = [(span.start, span.end) for span in spans]
    for at in range(1, len(said)):
        (begin, end), (start, stop) = times[at - 1], times[at]
        if start < end:
            said[at - 1], said[at] = _spliced(said[at - 1], said[at], math.ceil((end - start) * _UNITS_A_SECOND))
            times[at - 1], times[at] = (begin, (start + end) / 2), ((start + end) / 2, stop)
    return [Segment(*time, text) for time, text in zip(times, said, strict=True) if text]


def as_text(segments: Sequence[Segment]) -> str:
    """The segments as one line."""
    text = ""
    for segment in segments:
        line = _one_line(segment.text)
        both = _JOINED.fullmatch(text[-1:]) and _JOINED.fullmatch(line[:1])
        text += line if not text or both else f" {line}"
    return text


def as_srt(segments: Sequence[Segment]) -> str:
    """The segments as SubRip subtitles."""
    # Nothing can be escaped in this format
    lines = [regex.sub("-{2,}>", "->", _one_line(segment.text)) for segment in segments]
    times = [f"{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}" for segment in segments]
    cues = [f"{number}\n{time}\n{line}\n" for number, (time, line) in enumerate(zip(times, lines, strict=True), 1)]
    return "\n".join(cues)


def as_vtt(segments: Sequence[Segment]) -> str:
    """The segments as WebVTT subtitles (W3C, WebVTT: The Web Video Text Tracks Format, section 4.1)."""
    cues = [
        f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n"
        f"{html.escape(_one_line(segment.text), quote=False)}\n"
        for segment in segments
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _quiet(samples: Any) -> tuple[list[Stretch], list[Stretch]]:
    """The pauses, where a recording may be cut, and among them the silences, which may be left out.

    They differ in recordings that were edited: digital silence says nothing of how loud other pauses are.
    """
    level = _level(samples)
    if not len(level):
        return [], []
    loudest = min(50, -(-len(level) // 2))  # a second, so that a click doesn't count as speech
    speech = float(np.partition(level, len(level) - loudest)[len(level) - loudest])
    silence = _limit(level, speech)
    heard = level[level > _QUIETEST]
    pause = max(silence, _limit(heard, speech)) if len(heard) else silence
    return _stretches(level <= pause, len(samples)), _stretches(level <= silence, len(samples))


def _level(samples: Any) -> Floats:
    """Of each frame of 20 ms, in dB of full scale."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    power = np.einsum("ij,ij->i", frames, frames) / _FRAME - frames.mean(1) ** 2  # a constant offset is no sound
    level: Floats = np.maximum(10 * np.log10(np.maximum(power, 1e-30)), _QUIETEST)
    return level


def _limit(level: Floats, speech: float) -> float:
    """The level up to which frames are quiet."""
    noise = float(np.percentile(level, 5))
    if speech - noise < _LEAST_RANGE:
        return -math.inf
    return max(noise + _SHARE_OF_RANGE * (speech - noise), speech - _BELOW_SPEECH)


def _stretches(quiet: npt.NDArray[np.bool_], count: int) -> list[Stretch]:
    """Those of 0.3 s and more among the frames of `count` samples."""
    framed = np.concatenate(([False], quiet, [False]))
    edges = (np.flatnonzero(framed[1:] != framed[:-1]) * _FRAME).reshape(-1, 2).tolist()
    found = [(begin, stop) for begin, stop in edges if stop - begin >= _PAUSE]
    if found and found[-1][1] == len(quiet) * _FRAME:
        found[-1] = (found[-1][0], count)  # with what is less than a frame
    return found


def _kept(silence: int) -> int:
    """How much is kept of so much silence beside speech."""
    return _KEPT_SILENCE if silence > _LONG_SILENCE else silence


def _without_silence(silences: Sequence[Stretch], end: int) -> int:
    """Where a span ends that would go up to `end`."""
    return next((begin + _kept(end - begin) for begin, stop in silences if begin < end <= stop), end)


def _best_pause(pauses: Sequence[Stretch], start: int, stop: int, heard: int) -> Stretch | None:
    """Of the pauses in a window, which may go on behind it, the longest of the last third that has any.

    Up to `heard` the window before this one was heard already.
    """
    inside = [(begin, min(end, stop)) for begin, end in pauses if begin > start and min(end, stop) - begin >= _PAUSE]
    return max(
        (pause for pause in inside if sum(pause) // 2 > heard),
        key=lambda pause: (3 * (sum(pause) // 2 - start) // (stop - start), pause[1] - pause[0]),
        default=None,
    )


@dataclass(frozen=True)
class _Unit:
    """A word, or a character of a script without spaces; its place in the text, and its letters."""

    start: int
    end: int
    letters: str


def _units(text: str) -> list[_Unit]:
    found = []
    for match in _UNIT.finditer(text):
        letters = "".join(regex.findall(r"[\p{L}\p{M}\p{N}]", match[0].casefold()))
        if letters:
            found.append(_Unit(match.start(), match.end(), letters))
    return found


def _spliced(before: str, after: str, most: int) -> tuple[str, str]:
    """Both texts without what they share: up to `most` units at the end of the one and the beginning of the other."""
    tail, head = _units(before)[-most:], _units(after)[:most]
    meeting = _meeting(tail, head)
    if meeting is None:
        return before, after
    left, right = tail[meeting[0]], head[meeting[1]]
    # The last word of the one and the first of the other may be cut in half
    if right is head[0] and (left is not tail[-1] or len(left.letters) >= len(right.letters)):
        return before[: left.end], after[right.end :].strip()
    return before[: left.start].strip(), after[right.start :]


def _meeting(tail: Sequence[_Unit], head: Sequence[_Unit]) -> tuple[int, int] | None:
    """The places of the unit in both that is most surely the same; None where they seem to share nothing.

    The end of `tail` is aligned with the beginning of `head` (Needleman & Wunsch 1970, with free ends): words that are
    alike count for it by their letters, words that differ count against it, and half as much each that only one side
    has. The last word of `tail` may be the beginning of one, the first of `head` the end of one.
    """
    # Of each cell the score, and the pair on the best way to it that is most alike: (likeness, place, place).
    nothing = (0.0, -1, -1)
    row = [(0.0, nothing)]
    for unit in head:
        row.append((row[-1][0] - len(unit.letters) / 2, nothing))
    for i, left in enumerate(tail):
        above, row = row, [(0.0, nothing)]
        for j, right in enumerate(head):
            one, other = left.letters, right.letters
            if left is tail[-1]:
                other = other[: len(one)]
            if right is head[0]:
                one = one[-len(other) :]
            alike = SequenceMatcher(None, one, other, autojunk=False).ratio()
            score, best = above[j]
            score += max(len(one), len(other)) * (3 * alike - 2)
            ways = [
                (score, max(best, (alike, i, j))),
                (above[j + 1][0] - len(left.letters) / 2, above[j + 1][1]),
                (row[j][0] - len(right.letters) / 2, row[j][1]),
            ]
            row.append(max(ways, key=lambda way: way[0]))
    score, (_, i, j) = max(row, key=lambda cell: cell[0])
    return (i, j) if score >= _LEAST_EVIDENCE else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
