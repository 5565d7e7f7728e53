"""A recording on its way to text: decoded, cut where it is long, transcribed side by side, joined as it comes."""

import asyncio
import time
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from kauli.models.media.decode import AudioLimits, MediaError, Recording, decode_audio
from kauli.models.requests import TokenLogprob, TranscriptionRequest, Word
from kauli.models.speech.chunking import LONGEST, LONGEST_LEARNED, AudioSpan, Segment, as_text, cut, join
from kauli.serving.events import AudioBackend, Failed, Piece, Started
from kauli.serving.http.schemas import ApiError

AT_ONCE = 8
"""Spans of one recording in the queue: others are to get in between."""
_AGAIN_S = 0.5  # until a span that found the queue full asks again, once the recording's first was taken
_NOTHING = Recording(np.zeros(0, np.float32), 0.0)


@dataclass
class _Said:
    """What a span has said so far."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    words: tuple[Word, ...] = ()
    language: str | None = None
    whole: bool = False


class Transcript:
    """Transcribes one recording by `audio`; `request` says how, and has no samples."""

    def __init__(
        self, audio: AudioBackend, request: TranscriptionRequest, adapter: str | None, deadline_s: float
    ) -> None:
        self._audio, self._request, self._adapter = audio, request, adapter
        self._deadline_s = deadline_s
        self.recording = _NOTHING
        self.spans: list[AudioSpan] = []
        self._said: list[_Said] = []
        self._began = asyncio.Event()  # the first span was taken
        self._changed = asyncio.Event()
        self._room = asyncio.Semaphore(AT_ONCE)

    @property
    def language(self) -> str | None:
        """What was asked for, else what was heard in the first span."""
        return self._request.language or (self._said[0].language if self._said else None)

    @property
    def segments(self) -> list[Segment]:
        """The whole transcript, with its words if the request wants them; complete when `pieces` has ended."""
        words = [said.words for said in self._said] if self._request.words else ()
        return join([said.text for said in self._said], self.spans, words)

    def tokens(self, segment: Segment) -> tuple[TokenLogprob, ...]:
        """Those of the span that a segment came from, if log probabilities were asked for."""
        place = max(place for place, span in enumerate(self.spans) if span.start <= segment.start)
        return self._said[place].tokens

    async def pieces(self, content: bytes, limits: AudioLimits, stream: bool) -> AsyncGenerator[str]:
        """The text as it becomes certain, at first an empty piece when it has begun; `as_text` of the segments in all.

        Raises ApiError for a recording that is refused, and where a span fails.
        """
        until = time.monotonic() + self._deadline_s
        await self._read(content, limits)
        del content
        work = asyncio.create_task(self._hear_all(whole=not stream))
        work.add_done_callback(lambda done: self._changed.set())
        sent = ""
        try:
            while not work.done():
                try:
                    await asyncio.wait_for(self._changed.wait(), max(0.0, until - time.monotonic()))
                except TimeoutError:
                    text = f"no complete transcript within {self._deadline_s:g} seconds: send a shorter recording"
                    raise ApiError(504, text, "deadline_exceeded") from None
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

    async def _read(self, content: bytes, limits: AudioLimits) -> None:
        try:
            self.recording = await asyncio.to_thread(decode_audio, content, limits)
        except MediaError as error:
            large = len(content) > limits.max_bytes
            status, code = (413, "body_too_large") if large else (400, "invalid_audio")
            raise ApiError(status, str(error), code, "file") from None
        longest = min(LONGEST if self._adapter is None else LONGEST_LEARNED, await self._audio.longest())
        self.spans = await asyncio.to_thread(cut, self.recording.samples, longest)
        self._said = [_Said() for _ in self.spans]

    async def _hear_all(self, whole: bool) -> None:
        places = list(range(len(self.spans)))
        if self._request.language is None:  # what the first span is in is taken for all
            await self._hear(places.pop(0), whole)
            self._request = replace(self._request, language=self._said[0].language)
        try:
            async with asyncio.TaskGroup() as group:
                for place in places:
                    group.create_task(self._hear(place, whole))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _hear(self, place: int, whole: bool) -> None:
        request = replace(self._request, samples=self.spans[place].of(self.recording.samples))
        said = self._said[place]
        if place:
            await self._began.wait()
        async with self._room:
            while not said.whole:
                async with aclosing(self._audio.stream(request, self._adapter, whole)) as events:
                    async for event in events:
                        if isinstance(event, Failed):
                            if event.status != 429 or not place:
                                raise ApiError.of(event)
                            break
                        if isinstance(event, Started):
                            self._began.set()
                        if isinstance(event, Piece):
                            said.text += event.text
                            said.tokens += event.logprobs
                            said.words += event.words
                            said.language = event.language
                            said.whole = event.finish is not None
                        self._changed.set()
                    else:
                        if not said.whole:
                            raise RuntimeError("a transcriber ended without a finish")
                if not said.whole:
                    await asyncio.sleep(_AGAIN_S)

    def _certain(self) -> str:
        """The text up to where something may still change it."""
        done = next((place for place, said in enumerate(self._said) if not said.whole), len(self._said))
        if done < len(self._said) and self._stands_alone(done):
            texts = [said.text for said in self._said[: done + 1]]
            line = as_text(join(texts, self.spans[: done + 1]))
            # The last letter may be composed with marks that come.
            return line[: max((at for at, letter in enumerate(line) if not unicodedata.combining(letter)), default=0)]
        segments = join([said.text for said in self._said[:done]], self.spans[:done])
        if 0 < done < len(self._said) and self.spans[done].start < self.spans[done - 1].end:
            # The next span may take words off the end of this one.
            segments = [segment for segment in segments if segment.start < self.spans[done - 1].start]
        return as_text(segments)

    def _stands_alone(self, place: int) -> bool:
        """Whether a span shares nothing with its neighbours."""
        around = self.spans[max(0, place - 1) : place + 2]
        return all(one.end <= other.start for one, other in pairwise(around))
