"""Long audio: cut into spans that a recogniser takes at once; the spans' transcripts joined to one text with words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from kauli.models.adapters.certificate import Estimate
from kauli.models.languages import nfc
from kauli.models.media.decode import RATE
from kauli.models.requests import Word

LONGEST, LONGEST_LEARNED = 28.0, 15.0
"""Seconds of a span: for Whisper, which takes 30, and for an adapter, whose training clips are seldom as long."""

Stretch = tuple[int, int]
"""(first sample, sample after the last)."""
Floats = npt.NDArray[np.floating]

_FRAME = RATE // 50
_PAUSE = 15 * _FRAME  # 0.3 s: stops within and between words are shorter
_LONG_SILENCE = RATE  # longer silence is trimmed at both ends of a span: Whisper invents words in it
_KEPT_SILENCE = RATE // 2  # of it are kept beside speech, for soft sounds at the ends of words

_QUIETEST = -80.0  # dB of full scale; the level of digital silence
_LEAST_RANGE = 10.0  # dB from noise to speech; with less, no frame counts as a pause
_SHARE_OF_RANGE = 0.2  # of this range: the highest level of a pause above the noise
_BELOW_SPEECH = 40.0  # dB: a frame this far below the speech is always a pause

_UNITS_A_SECOND = 10  # words, or characters of scripts without spaces, in very fast speech
_LEAST_EVIDENCE = 2.0  # score (letters in common less those that differ) above which two texts share words
# Scripts that put no space between words
_UNSPACED = (
    r"\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}\p{Script=Lao}\p{Script=Khmer}"
    r"\p{Script=Myanmar}\p{Script=Tibetan}"
)
# Python counts ASCII's separators as white space, regex does not
_UNIT = regex.compile(rf"(?=[{_UNSPACED}])\X|[^\s\x1c-\x1f{_UNSPACED}]+")
_SILENT = regex.compile(r"[\p{P}\p{S}\p{C}]+")
_WORD = regex.compile(rf"(?=[{_UNSPACED}])\X(?:(?![\p{{Ps}}\p{{Pi}}])\p{{P}})*|[^\s\x1c-\x1f{_UNSPACED}]+")
_OPENING = regex.compile(r"[\p{Ps}\p{Pi}¿¡]")
_DASH = regex.compile(r"\p{Pd}")
_SENTENCE_END = regex.compile(r"[\p{Sentence_Terminal}…]\W*$")
_JOINED = regex.compile(rf"[{_UNSPACED}\u3000-\u303f\uff00-\uff65]")


@dataclass(frozen=True)
class AudioSpan:
    """A part of an audio, in seconds from its start."""

    start: float
    end: float

    def of(self, samples: Any) -> Any:
        """The span's part of all samples (n,)."""
        return samples[round(self.start * RATE) : round(self.end * RATE)]


@dataclass(frozen=True)
class Segment:
    """The transcript from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    """The words of the text in order, timed in seconds of the whole audio, if their times were requested."""
    avg_logprob: float | None = None
    """The mean log probability of the tokens of the span that it comes from."""
    compression_ratio: float | None = None
    """See `kauli.models.speech.guards.compression_ratio`."""
    no_speech_prob: float | None = None
    """The probability that nothing is spoken in the span; None: the model has none."""
    tokens: tuple[int, ...] = ()
    """Of the span."""
    certificate: Estimate | None = None
    """How wrong the span's transcript is expected to be; None: its adapter has no certificate."""


def cut(samples: Any, longest: float, overlap: float = 2.0) -> list[AudioSpan]:
    """The spans of an audio in order, none longer than `longest`; only silence lies between them.

    A span ends in the longest pause of the last third of the longest possible span, else in one of the thirds before.
    Without any pause it ends there, and the next span starts `overlap` earlier: a word that is cut in half in one of
    them is whole in the other. Silence of more than a second before and after a span is trimmed.

    Args:
        samples: (n,) float32 at 16 kHz.
        longest: seconds.
        overlap: seconds, fewer than `longest`.
    """
    if not 0 <= overlap < longest:
        raise ValueError(f"spans of {longest:g} seconds cannot overlap by {overlap:g}")
    most, shared = int(longest * RATE), int(overlap * RATE)
    pauses, silences = _quiet(samples)
    speech_end = end = len(samples)
    if silences and silences[-1][1] == end:
        speech_end, end = silences[-1][0] + _PAUSE // 2, _without_silence(silences, end)
    spans: list[AudioSpan] = []
    start = covered = 0
    while True:
        start = next((stop - _kept(stop - start) for begin, stop in silences if begin <= start < stop), start)
        if speech_end - start <= most:
            return [*spans, AudioSpan(start / RATE, min(end, start + most) / RATE)]
        pause = _best_pause(pauses, start, start + most, covered)
        if pause is None:
            covered = start + most
            spans.append(AudioSpan(start / RATE, covered / RATE))
            start = covered - shared
        else:
            covered = sum(pause) // 2
            spans.append(AudioSpan(start / RATE, _without_silence(silences, covered) / RATE))
            start = covered


def join(texts: Sequence[str], spans: Sequence[AudioSpan], words: Sequence[Sequence[Word]] = ()) -> list[Segment]:
    """The transcripts of an audio's spans as segments that do not overlap; an empty transcript gives none.

    Words in the overlap of two spans are kept once. The last word of a span and the first of the next may be cut in
    half and transcribed wrongly: the words that agree on both sides decide where one text continues in the other.

    Args:
        texts: one for each span.
        spans: in order.
        words: each text's words (`word_spans`) with their times in the span, if they were requested; a segment gets
            those that are left of its text.
    """
    whole = [nfc(text).strip() for text in texts]
    kept = [(0, len(text)) for text in whole]
    times = [(span.start, span.end) for span in spans]
    for at in range(1, len(whole)):
        (begin, end), (start, stop) = times[at - 1], times[at]
        if start < end:
            first, last = kept[at - 1]
            cut_at, resumes = _splice(whole[at - 1][first:last], whole[at], math.ceil((end - start) * _UNITS_A_SECOND))
            kept[at - 1], kept[at] = (first, first + cut_at), (resumes, len(whole[at]))
            times[at - 1], times[at] = (begin, (start + end) / 2), ((start + end) / 2, stop)
    found = []
    for at, (text, (first, last)) in enumerate(zip(whole, kept, strict=True)):
        if text[first:last].strip():
            ours = _kept_words(words[at], text, first, last, spans[at]) if words else ()
            found.append(Segment(*times[at], text[first:last].strip(), ours))
    return found


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word of a text; together they are all of it but white space.

    Words are separated by spaces; in scripts without spaces each character (grapheme cluster) is one. Punctuation
    belongs to the word before it, or to the next where it opens something, as a dash between sentences does.
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
    if opened is not None:  # nothing follows it
        found.append((found.pop()[0] if found else opened, len(text.rstrip())))
    return found


def ends_sentence(word: str) -> bool:
    """Whether a sentence ends with this word; quotation marks and brackets may follow its full stop."""
    return _SENTENCE_END.search(word) is not None


def as_text(segments: Sequence[Segment]) -> str:
    """The segments as one line."""
    text = ""
    for segment in segments:
        line = " ".join(segment.text.split())
        text += f" {line}" if text and spaced_apart(text, line) else line
    return text


def spaced_apart(text: str, other: str) -> bool:
    """Whether a space separates these texts; not between characters of a script without spaces."""
    return not (_JOINED.fullmatch(text[-1:]) and _JOINED.fullmatch(other[:1]))


def pauses(samples: Any) -> list[tuple[float, float]]:
    """The pauses of 0.3 s or more in samples (n,): (start, end) in seconds."""
    return [(begin / RATE, end / RATE) for begin, end in _quiet(samples)[0]]


def _quiet(samples: Any) -> tuple[list[Stretch], list[Stretch]]:
    """The pauses, where audio may be cut, and among them the silences, which may be trimmed.

    They differ in edited audio: the level of digital silence does not bound that of other pauses.
    """
    level = _level(samples)
    if not len(level):
        return [], []
    loudest = min(50, -(-len(level) // 2))  # a second, so that a click does not count as speech
    speech = float(np.partition(level, len(level) - loudest)[len(level) - loudest])
    silence = _limit(level, speech)
    audible = level[level > _QUIETEST]
    pause = max(silence, _limit(audible, speech)) if len(audible) else silence
    return _stretches(level <= pause, len(samples)), _stretches(level <= silence, len(samples))


def _level(samples: Any) -> Floats:
    """The level of each frame of 20 ms, in dB of full scale."""
    frames = samples[: len(samples) // _FRAME * _FRAME].reshape(-1, _FRAME)
    power = np.einsum("ij,ij->i", frames, frames) / _FRAME - frames.mean(1) ** 2  # without a constant offset
    level: Floats = np.maximum(10 * np.log10(np.maximum(power, 1e-30)), _QUIETEST)
    return level


def _limit(level: Floats, speech: float) -> float:
    """The highest level of a quiet frame."""
    noise = float(np.percentile(level, 5))
    if speech - noise < _LEAST_RANGE:
        return -math.inf
    return max(noise + _SHARE_OF_RANGE * (speech - noise), speech - _BELOW_SPEECH)


def _stretches(quiet: npt.NDArray[np.bool_], count: int) -> list[Stretch]:
    """The runs of 0.3 s or more of quiet frames, which cover `count` samples."""
    framed = np.concatenate(([False], quiet, [False]))
    edges = (np.flatnonzero(framed[1:] != framed[:-1]) * _FRAME).reshape(-1, 2).tolist()
    found = [(begin, stop) for begin, stop in edges if stop - begin >= _PAUSE]
    if found and found[-1][1] == len(quiet) * _FRAME:
        found[-1] = (found[-1][0], count)  # with the rest that is shorter than a frame
    return found


def _kept(silence: int) -> int:
    """How much of a silence is kept beside speech."""
    return _KEPT_SILENCE if silence > _LONG_SILENCE else silence


def _without_silence(silences: Sequence[Stretch], end: int) -> int:
    """The end of a span with the silence before `end` trimmed."""
    return next((begin + _kept(end - begin) for begin, stop in silences if begin < end <= stop), end)


def _best_pause(pauses: Sequence[Stretch], start: int, stop: int, covered: int) -> Stretch | None:
    """The longest pause of the last third of a window that has any; a pause may extend beyond the window.

    Pauses before `covered`, the end of the previous span, do not count.
    """
    inside = [(begin, min(end, stop)) for begin, end in pauses if begin > start and min(end, stop) - begin >= _PAUSE]
    return max(
        (pause for pause in inside if sum(pause) // 2 > covered),
        key=lambda pause: (3 * (sum(pause) // 2 - start) // (stop - start), pause[1] - pause[0]),
        default=None,
    )


@dataclass(frozen=True)
class _Unit:
    """A word, or a character of a script without spaces: its position in the text, and its letters."""

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
    """The end of the first text and the start of the second that leave what they share in one of them only.

    They share up to `most` units at the end of the first and the start of the second.
    """
    tail, head = _units(before)[-most:], _units(after)[:most]
    meeting = _meeting(tail, head)
    if meeting is None:
        return len(before), 0
    left, right = tail[meeting[0]], head[meeting[1]]
    # The last word of the first and the first of the second may be cut in half
    if right is head[0] and (left is not tail[-1] or len(left.letters) >= len(right.letters)):
        return left.end, right.end
    return left.start, right.start


def _kept_words(words: Sequence[Word], text: str, first: int, last: int, span: AudioSpan) -> tuple[Word, ...]:
    """The words of a text that lie at least partly between `first` and `last`: that part, with its time."""
    found = []
    place = 0
    for word in words:
        whole = nfc(word.text)
        begin = text.index(whole, place)
        place = begin + len(whole)
        part = text[max(begin, first) : min(place, last)].strip()
        if part:
            start, end = (min(round(span.start + at, 3), span.end) for at in (word.start, word.end))
            found.append(replace(word, text=part, start=start, end=end))
    return tuple(found)


def _meeting(tail: Sequence[_Unit], head: Sequence[_Unit]) -> tuple[int, int] | None:
    """The positions in both of the unit that most surely agrees; None where they seem to share nothing.

    The end of `tail` is aligned with the start of `head` (Needleman & Wunsch 1970, with free ends): the letters of
    words that agree score, those of words that differ count against it, half as much for a word that only one side
    has. The last word of `tail` may be the start of a word, the first of `head` the end of one.
    """
    # Each cell: the score, and the most similar pair on the best path to it: (similarity, position, position)
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
