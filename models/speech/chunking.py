"""Long recordings: cut into spans that a recogniser hears at once; their transcripts as one text with its words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from kauli.models.languages import nfc
from kauli.models.media.decode import RATE
from kauli.models.requests import Word

LONGEST, LONGEST_LEARNED = 28.0, 15.0
"""Seconds of a span for Whisper, which hears 30; for an adapter, which learned from clips that are seldom as long."""

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
# Python counts the separators of ASCII as white space, regex does not
_UNIT = regex.compile(rf"(?=[{_UNSPACED}])\X|[^\s\x1c-\x1f{_UNSPACED}]+")
_SILENT = regex.compile(r"[\p{P}\p{S}\p{C}]+")
_WORD = regex.compile(rf"(?=[{_UNSPACED}])\X(?:(?![\p{{Ps}}\p{{Pi}}])\p{{P}})*|[^\s\x1c-\x1f{_UNSPACED}]+")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}¿¡]")
_DASH = regex.compile(r"\p{Pd}")
_SENTENCE_END = regex.compile(r"[\p{Sentence_Terminal}…]\W*$")
_JOINED = regex.compile(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uff65]")


@dataclass(frozen=True)
class AudioSpan:
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
    words: tuple[Word, ...] = ()
    """Those of the text in its order, if their times were asked for, in seconds of the recording."""


def cut(samples: Any, longest: float, overlap: float = 2.0) -> list[AudioSpan]:
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
    spans: list[AudioSpan] = []
    start = heard = 0
    while True:
        start = next((stop - _kept(stop - start) for begin, stop in silences if begin <= start < stop), start)
        if spoken - start <= most:
            return [*spans, AudioSpan(start / RATE, min(end, start + most) / RATE)]
        pause = _best_pause(pauses, start, start + most, heard)
        if pause is None:
            heard = start + most
            spans.append(AudioSpan(start / RATE, heard / RATE))
            start = heard - shared
        else:
            heard = sum(pause) // 2
            spans.append(AudioSpan(start / RATE, _without_silence(silences, heard) / RATE))
            start = heard


def join(texts: Sequence[str], spans: Sequence[AudioSpan], words: Sequence[Sequence[Word]] = ()) -> list[Segment]:
    """The transcripts of a recording's spans as segments that don't overlap; an empty one gives none.

    What two overlapping spans both heard is said once. There a span's last word and the next one's first may be cut in
    half and so heard wrongly: the words that are alike on both sides decide where the one goes over into the other.

    Args:
        texts: one for each span.
        spans: in their order.
        words: each text's words (`word_spans`) with their times in the span, if they were asked for; a segment gets
            those of what is left of its text.
    """
    said = [nfc(text).strip() for text in texts]
    kept = [(0, len(text)) for text in said]
    times = [(span.start, span.end) for span in spans]
    for at in range(1, len(said)):
        (begin, end), (start, stop) = times[at - 1], times[at]
        if start < end:
            first, last = kept[at - 1]
            cut_at, goes_on = _splice(said[at - 1][first:last], said[at], math.ceil((end - start) * _UNITS_A_SECOND))
            kept[at - 1], kept[at] = (first, first + cut_at), (goes_on, len(said[at]))
            times[at - 1], times[at] = (begin, (start + end) / 2), ((start + end) / 2, stop)
    found = []
    for at, (text, (first, last)) in enumerate(zip(said, kept, strict=True)):
        if text[first:last].strip():
            ours = _kept_words(words[at], text, first, last, spans[at]) if words else ()
            found.append(Segment(*times[at], text[first:last].strip(), ours))
    return found


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end; they are all of it but white space.

    They are what stands between spaces, and single characters (grapheme clusters) of scripts without spaces.
    Punctuation belongs to the word before it, or to the one behind it where it opens something, as a dash between
    sentences does.
    """
    found: list[tuple[int, int]] = []
    opened: int | None = None
    for match in _WORD.finditer(text):
        start, end = match.span()
        if _SILENT.fullmatch(match[0]):
            opens = not found or opened is not None or _OPENING.match(match[0])
            if opens or (_DASH.match(match[0]) and ends_sentence(text[slice(*found[-1])])):
                opened = start if opened is None else opened
            else:
                found[-1] = (found[-1][0], end)
        else:
            found.append((start if opened is None else opened, end))
            opened = None
    if opened is not None:  # nothing is behind it
        found.append((found.pop()[0] if found else opened, len(text.rstrip())))
    return found


def ends_sentence(word: str) -> bool:
    """Whether a sentence is over behind this word; quotation marks and brackets may close behind its full stop."""
    return _SENTENCE_END.search(word) is not None


def as_text(segments: Sequence[Segment]) -> str:
    """The segments as one line."""
    text = ""
    for segment in segments:
        line = " ".join(segment.text.split())
        text += f" {line}" if text and spaced_apart(text, line) else line
    return text


def spaced_apart(text: str, other: str) -> bool:
    """Whether a space goes between these two; not between characters of a script that has none."""
    return not (_JOINED.fullmatch(text[-1:]) and _JOINED.fullmatch(other[:1]))


def pauses(samples: Any) -> list[tuple[float, float]]:
    """Where nobody speaks for 0.3 s and more, in seconds, of samples (n,)."""
    return [(begin / RATE, end / RATE) for begin, end in _quiet(samples)[0]]


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


def _splice(before: str, after: str, most: int) -> tuple[int, int]:
    """Where the one text is to end and the other to begin, so that neither has what they share.

    They share up to `most` units at the end of the one and the beginning of the other.
    """
    tail, head = _units(before)[-most:], _units(after)[:most]
    meeting = _meeting(tail, head)
    if meeting is None:
        return len(before), 0
    left, right = tail[meeting[0]], head[meeting[1]]
    # The last word of the one and the first of the other may be cut in half
    if right is head[0] and (left is not tail[-1] or len(left.letters) >= len(right.letters)):
        return left.end, right.end
    return left.start, right.start


def _kept_words(words: Sequence[Word], text: str, first: int, last: int, span: AudioSpan) -> tuple[Word, ...]:
    """Those of a text's words of which something lies between `first` and `last`, with that part and their times."""
    found = []
    place = 0
    for word in words:
        said = nfc(word.text)
        begin = text.index(said, place)
        place = begin + len(said)
        part = text[max(begin, first) : min(place, last)].strip()
        if part:
            start, end = (min(round(span.start + at, 3), span.end) for at in (word.start, word.end))
            found.append(replace(word, text=part, start=start, end=end))
    return tuple(found)


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
