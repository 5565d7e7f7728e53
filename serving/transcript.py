"""Audio to text: cut where it is long, transcribed in parallel, joined as the parts come. For HTTP and the command."""

import asyncio
import time
import unicodedata
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from kauli.models.media.decode import DecodedAudio
from kauli.models.requests import TokenLogprob, TranscriptionRequest, Word
from kauli.models.speech.chunking import LONGEST, LONGEST_LEARNED, AudioSpan, Segment, as_text, cut, join
from kauli.serving.events import Failed, Piece, Refused, Started

if TYPE_CHECKING:  # torch is not needed to reach a worker behind a handle
    from kauli.serving.workers.transcriber import Transcriber

AT_ONCE = 8
"""Spans of one audio file in the queue, so that other requests get in between."""
_AGAIN_S = 0.5  # until a span that found the queue full retries, once the first span was accepted
_NOTHING = DecodedAudio(np.zeros(0, np.float32), 0.0)


@dataclass
class _Part:
    """The transcript of a span so far."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    words: tuple[Word, ...] = ()
    language: str | None = None
    finish: str | None = None


class Transcript:
    """Transcribes one audio file by `audio`; `request` has the options, and no samples.

    `at_once` spans are computed in parallel.
    """

    def __init__(
        self, audio: "Transcriber", request: TranscriptionRequest, adapter: str | None, deadline_s: float, *,
        at_once: int = AT_ONCE,
    ) -> None:  # fmt: skip
        self._audio, self._request, self._adapter = audio, request, adapter
        self._deadline_s = deadline_s
        self.clip = _NOTHING
        self.spans: list[AudioSpan] = []
        self._parts: list[_Part] = []
        self._began = asyncio.Event()  # the first span was accepted
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(at_once)

    @property
    def language(self) -> str | None:
        """The one of the request, else the one detected in the first span."""
        return self._request.language or (self._parts[0].language if self._parts else None)

    @property
    def segments(self) -> list[Segment]:
        """The whole transcript, with its words if the request wants them; complete when `pieces` has ended."""
        words = [part.words for part in self._parts] if self._request.words else ()
        return join([part.text for part in self._parts], self.spans, words)

    @property
    def cut_off(self) -> list[AudioSpan]:
        """The spans whose text the model did not finish."""
        return [span for span, part in zip(self.spans, self._parts, strict=True) if part.finish == "length"]

    def tokens(self, segment: Segment) -> tuple[TokenLogprob, ...]:
        """Those of the span that a segment comes from, if log probabilities were asked for."""
        place = max(place for place, span in enumerate(self.spans) if span.start <= segment.start)
        return self._parts[place].tokens

    async def cut(self, clip: DecodedAudio) -> None:
        """Take an audio file and cut it into spans, for `pieces`. Raises Refused."""
        self.clip = clip
        most = await self._audio.longest()
        if isinstance(most, Failed):  # of a handle
            raise Refused(most)
        longest = min(LONGEST if self._adapter is None else LONGEST_LEARNED, most)
        self.spans = await asyncio.to_thread(cut, clip.samples, longest)
        self._parts = [_Part() for _ in self.spans]

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
        places = list(range(len(self.spans)))
        if self._request.language is None:  # the language of the first span is that of all
            await self._transcribe(places.pop(0), whole, advance)
            self._request = replace(self._request, language=self._parts[0].language)
        try:
            async with asyncio.TaskGroup() as group:
                for place in places:
                    group.create_task(self._transcribe(place, whole, advance))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _transcribe(self, place: int, whole: bool, advance: Callable[[], None]) -> None:
        request = replace(self._request, samples=self.spans[place].of(self.clip.samples))
        part = self._parts[place]
        if place:
            await self._began.wait()
        async with self._room:
            while not part.finish:
                async with aclosing(self._audio.stream(request, self._adapter, whole)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            if event.status != 429 or not place:
                                raise Refused(event)
                            break
                        if isinstance(event, Started):
                            self._began.set()
                        if isinstance(event, Piece):
                            part.text += event.text
                            part.tokens += event.logprobs
                            part.words += event.words
                            part.language = event.language
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
            texts = [part.text for part in self._parts[: done + 1]]
            line = as_text(join(texts, self.spans[: done + 1]))
            # The last letter may be composed with combining marks that come later.
            return line[: max((at for at, letter in enumerate(line) if not unicodedata.combining(letter)), default=0)]
        segments = join([part.text for part in self._parts[:done]], self.spans[:done])
        if 0 < done < len(self._parts) and self.spans[done].start < self.spans[done - 1].end:
            # The next span may remove words at the end of this one.
            segments = [segment for segment in segments if segment.start < self.spans[done - 1].start]
        return as_text(segments)

    def _is_separate(self, place: int) -> bool:
        """Whether a span overlaps no other."""
        around = self.spans[max(0, place - 1) : place + 2]
        return all(one.end <= other.start for one, other in pairwise(around))
