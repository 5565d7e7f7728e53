"""Audio to text: cut where it is long, transcribed in parallel, joined as the parts come. For HTTP and the command."""

import asyncio
import time
import unicodedata
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from kauli.models.adapters.certificate import Certificate, figures_of
from kauli.models.media.decode import DecodedAudio
from kauli.models.requests import TokenLogprob, TranscriptionRequest, Word
from kauli.models.speech.chunking import LONGEST, LONGEST_LEARNED, AudioSpan, Segment, as_text, cut, join
from kauli.models.speech.guards import Guards, compression_ratio
from kauli.serving.events import Failed, Piece, Refused, Started

if TYPE_CHECKING:  # torch is not needed to reach a worker behind a handle
    from kauli.serving.workers.transcriber import Transcriber

AT_ONCE = 8
"""Spans of one audio file in the queue, so that other requests get in between."""
_AGAIN_S = 0.5  # until a span that found the queue full retries, once the first span was accepted
_GUARDS = Guards()
_NOTHING = DecodedAudio(np.zeros(0, np.float32), 0.0)


@dataclass
class _Part:
    """The transcript of a span so far."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    words: tuple[Word, ...] = ()
    language: str | None = None
    finish: str | None = None
    no_speech_prob: float | None = None
    fault: str = ""
    """What the guards found, as the end of a sentence."""
    left_out: bool = False
    """Whether the text is none that was spoken."""

    @property
    def avg_logprob(self) -> float | None:
        return round(sum(one.logprob for one in self.tokens) / len(self.tokens), 4) if self.tokens else None


class Transcript:
    """Transcribes one audio file by `audio`; `request` has the options, and no samples.

    `at_once` spans are computed in parallel. What the `guards` find to be no speech is left out.
    """

    def __init__(
        self, audio: "Transcriber", request: TranscriptionRequest, adapter: str | None, deadline_s: float, *,
        at_once: int = AT_ONCE, guards: Guards = _GUARDS, certified: tuple[Certificate, str] | None = None,
    ) -> None:  # fmt: skip
        self._certified = certified
        self._audio, self._request, self._adapter = audio, replace(request, logprobs=0), adapter
        self._deadline_s, self._guards = deadline_s, guards
        self.clip = _NOTHING
        self.spans: list[AudioSpan] = []
        self._parts: list[_Part] = []
        self._began = asyncio.Event()  # the first span was accepted
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(at_once)
        self._first = 0

    @property
    def language(self) -> str | None:
        """The one of the request, else the one detected in the first span that has speech."""
        found = (part.language for part in self._parts if part.language and not part.left_out)
        return self._request.language or next(found, None)

    @property
    def segments(self) -> list[Segment]:
        """The whole transcript, with its words if the request wants them; complete when `pieces` has ended."""
        words = [part.words for part in self._parts] if self._request.words else ()
        return [self._scored(segment) for segment in join(self._texts(), self.spans, words)]

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each thing that a reader should know of the audio, then of the transcript."""
        found = list(self.clip.warnings)
        for span, part in zip(self.spans, self._parts, strict=True):
            faults = [part.fault, "is truncated" if part.finish == "length" else ""]
            found += [f"the transcript from {span.start:.1f} to {span.end:.1f} s {one}" for one in faults if one]
        return tuple(found)

    @property
    def tokens(self) -> list[TokenLogprob]:
        """Those of the text."""
        return [one for part in self._parts if not part.left_out for one in part.tokens if one.bytes]

    def _scored(self, segment: Segment) -> Segment:
        """A segment with the numbers of the span that it comes from."""
        at = max(place for place, span in enumerate(self.spans) if span.start <= segment.start)
        part, known = self._parts[at], None
        if self._certified is not None:
            certificate, language = self._certified
            costs, seconds = [one.logprob for one in part.tokens], self.spans[at].end - self.spans[at].start
            figures = figures_of(part.text, costs, language, seconds=seconds, cut=part.finish == "length")
            known = certificate.assess(figures)
        return replace(
            segment, avg_logprob=part.avg_logprob, compression_ratio=compression_ratio(segment.text),
            no_speech_prob=part.no_speech_prob, tokens=tuple(one.token for one in part.tokens if one.bytes),
            certificate=known,
        )  # fmt: skip

    def _texts(self) -> list[str]:
        """Each span's text as far as it may be shown: where nothing may be spoken, only when it is judged."""
        most = self._guards.no_speech_threshold
        doubtful = [not part.finish and (part.no_speech_prob or 0.0) > most for part in self._parts]
        return ["" if part.left_out or wait else part.text for part, wait in zip(self._parts, doubtful, strict=True)]

    async def cut(self, clip: DecodedAudio) -> None:
        """Take an audio file and cut it into spans, for `pieces`. Raises Refused."""
        self.clip = clip
        most = await self._audio.longest()
        if isinstance(most, Failed):  # of a handle
            raise Refused(most)
        longest = min(LONGEST if self._adapter is None else LONGEST_LEARNED, most)
        self.spans = await asyncio.to_thread(cut, clip.samples, longest)
        silent = [self._guards.silent(span.of(clip.samples)) for span in self.spans]
        self._parts = [
            _Part(finish="stop", left_out=True, fault="is empty: steady noise near silence") if one else _Part()
            for one in silent
        ]

    async def pieces(self, stream: bool, advance: Callable[[], None] = lambda: None) -> AsyncGenerator[str]:
        """The text as it becomes certain: an empty piece at the beginning, in all `as_text` of the segments.

        `advance` is called when a span is complete. Raises Refused where a span fails.
        """
        until = time.monotonic() + self._deadline_s
        work = asyncio.create_task(self._transcribe_all(not stream, advance))
        work.add_done_callback(lambda done: self._changed.set())
        sent = ""
        try:
            while not work.done():
                try:
                    await asyncio.wait_for(self._changed.wait(), max(0.0, until - time.monotonic()))
                except TimeoutError:
                    text = f"no complete transcript within {self._deadline_s:g} seconds: send shorter audio"
                    raise Refused(Failed(504, text, "deadline_exceeded")) from None
                self._changed.clear()
                if stream and self._began.is_set() and not work.done():
                    certain = self._certain()
                    yield certain[len(sent) :]
                    sent = max(sent, certain, key=len)
            await work
            yield as_text(self.segments)[len(sent) :]
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _transcribe_all(self, whole: bool, advance: Callable[[], None]) -> None:
        places = [place for place, part in enumerate(self._parts) if not part.finish]
        for _ in range(len(self._parts) - len(places)):
            advance()
        self._first = places[0] if places else 0
        while places and self._request.language is None:  # that of the first span with speech is that of all
            part = self._parts[places[0]]
            await self._transcribe(places.pop(0), whole, advance)
            if not part.left_out:
                self._request = replace(self._request, language=part.language)
                break
        try:
            async with asyncio.TaskGroup() as group:
                for place in places:
                    group.create_task(self._transcribe(place, whole, advance))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _transcribe(self, place: int, whole: bool, advance: Callable[[], None]) -> None:
        request = replace(self._request, samples=self.spans[place].of(self.clip.samples))
        part = self._parts[place]
        if place != self._first:
            await self._began.wait()
        async with self._room:
            while not part.finish:
                async with aclosing(self._audio.stream(request, self._adapter, whole)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            if event.status != 429 or place == self._first:
                                raise Refused(event)
                            break
                        if isinstance(event, Started):
                            self._began.set()
                        if isinstance(event, Piece):
                            part.text += event.text
                            part.tokens += event.logprobs
                            part.words += event.words
                            part.language, probability = event.language, event.no_speech_prob
                            part.no_speech_prob = None if probability is None else round(probability, 4)
                            if event.finish:  # judged before it counts as finished: what is left out is never shown
                                part.left_out, part.fault = await asyncio.to_thread(
                                    self._guards.judge, part.text, part.no_speech_prob, part.avg_logprob
                                )
                            part.finish = event.finish
                        self._changed.set()
                    else:
                        if not part.finish:
                            raise RuntimeError("a transcriber ended without a finish")
                if not part.finish:
                    await asyncio.sleep(_AGAIN_S)
        advance()

    def _certain(self) -> str:
        """The text up to where something may still change it."""
        done = next((place for place, part in enumerate(self._parts) if not part.finish), len(self._parts))
        if done < len(self._parts) and self._is_separate(done):
            line = as_text(join(self._texts()[: done + 1], self.spans[: done + 1]))
            # The last letter may be composed with combining marks that come later.
            return line[: max((at for at, letter in enumerate(line) if not unicodedata.combining(letter)), default=0)]
        segments = join(self._texts()[:done], self.spans[:done])
        if 0 < done < len(self._parts) and self.spans[done].start < self.spans[done - 1].end:
            # The next span may remove words at the end of this one.
            segments = [segment for segment in segments if segment.start < self.spans[done - 1].start]
        return as_text(segments)

    def _is_separate(self, place: int) -> bool:
        """Whether a span overlaps no other."""
        around = self.spans[max(0, place - 1) : place + 2]
        return all(one.end <= other.start for one, other in pairwise(around))


def verbose_json(
    segments: Sequence[Segment], language: str | None, seconds: float, warnings: Sequence[str], *,
    words: bool, temperature: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """OpenAI's `verbose_json`, with Whisper's numbers of each segment and our warnings; `words` adds their times."""
    content: dict[str, Any] = {
        "text": as_text(segments), "usage": usage(seconds), "task": "transcribe", "language": language,
        "duration": round(seconds, 3), "warnings": list(warnings),
        "segments": [
            {
                "id": number, "seek": int(100 * one.start), "start": round(one.start, 3), "end": round(one.end, 3),
                "text": one.text, "tokens": list(one.tokens), "temperature": temperature,
                "avg_logprob": one.avg_logprob, "compression_ratio": one.compression_ratio,
                "no_speech_prob": one.no_speech_prob,
                **({"certificate": asdict(one.certificate)} if one.certificate else {}),
            }
            for number, one in enumerate(segments)
        ],
    }  # fmt: skip
    if words:
        content["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}
            for segment in segments
            for word in segment.words
        ]
    return content


def usage(seconds: float) -> dict[str, Any]:
    """What a transcript cost, in OpenAI's form."""
    return {"type": "duration", "seconds": round(seconds, 3)}
