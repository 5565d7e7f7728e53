"""The worker for speech: one copy of a base speaks for all requests, their next sentences together in a batch.

A request's sentences are spoken one after another, so that the first is heard while the others wait, and a long text
holds up nobody.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from kauli.models.bases.find import Base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import SpeechRequest, Voice
from kauli.models.speech.reading import Reading, Sentence
from kauli.models.speech.speak import Job, SpeakTask
from kauli.models.speech.watermark import watermark
from kauli.serving.events import Failed, Refused, SpeechEvent, SpeechStarted, internal_error
from kauli.serving.settings import ServeArgs
from kauli.serving.speech import spoken_language
from kauli.serving.workers.adapters import AdapterWorker
from kauli.serving.workers.worker import load_task


@dataclass(eq=False)
class _Talk:
    """An accepted request: what is left to say, and who waits for it."""

    request: SpeechRequest
    adapter: str | None
    language: str
    left: deque[tuple[int, Sentence]]
    deliver: Callable[[SpeechEvent], None]
    gone: bool = False
    """Whether its client has left."""


class Speaker(AdapterWorker):
    """Speaks from its thread; `stream` is called from any event loop. No Ray in here."""

    _task: SpeakTask

    def __init__(self, task: SpeakTask, args: ServeArgs) -> None:
        super().__init__("speaker", args, task)
        watermark()  # a missing package is an error now, not at the first request
        self._max_queue = args.max_queue
        self._talks: deque[_Talk] = deque()
        self._open = 0
        self._thread.start()

    async def voices(self) -> tuple[Voice, ...]:
        """The voices, the default one first."""
        return self._task.voices

    async def stream(self, request: SpeechRequest, adapter: str | None = None) -> AsyncGenerator[SpeechEvent]:
        """`SpeechStarted`, then each sentence as it is spoken; or `Failed`, as the last event.

        Leaving the iteration ends the request after its present sentence.
        """
        until = time.monotonic() + self._deadline_s
        try:
            self._enter()
        except Refused as refusal:
            yield refusal.failed
            return
        talk: _Talk | None = None
        taken = False
        try:
            if adapter:
                await self._take(adapter, until)
                taken = True
            reading, language = await self._before(until, asyncio.to_thread(self._read, request, adapter))
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[SpeechEvent] = asyncio.Queue()

            def deliver(event: SpeechEvent) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(events.put_nowait, event)

            yield SpeechStarted(language, len(reading.sentences), reading.unread)
            talk = _Talk(request, adapter, language, deque(enumerate(reading.sentences)), deliver)
            with self._changed:
                self._refuse_stopped()
                self._talks.append(talk)
                self._changed.notify_all()
            for _ in reading.sentences:
                event = await self._before(until, events.get())
                yield event
                if isinstance(event, Failed):
                    return
        except UsageError as error:
            yield Failed(400, str(error), "invalid_value", "input")
        except KauliError as error:  # eSpeak can't be run
            yield Failed(503, str(error), "unavailable")
        except Refused as refusal:
            yield refusal.failed
        finally:
            if talk is not None:
                talk.gone = True
            with self._changed:
                self._open -= 1
            if taken and adapter:
                self._release(adapter)

    def _read(self, request: SpeechRequest, adapter: str | None) -> tuple[Reading, str]:
        """The sentences of a text and its language, which is detected where a longer text names none."""
        if request.language is None:
            request = replace(request, language=spoken_language(request.text))
        if request.language is not None:  # apart from what is wrong with a text: no other text would be spoken
            try:
                self._task.check_language(request.language, self._task.voice(request.voice))
            except UsageError as error:
                raise Refused(Failed(400, str(error), "invalid_value", "language")) from None
        return self._task.read(request, adapter)

    def _enter(self) -> None:
        with self._changed:
            self._refuse_stopped()
            if self._open >= self._task.slots + self._max_queue:
                raise Refused(Failed(429, f"{self._open} texts are already waiting; retry later", "queue_full"))
            self._open += 1

    # In the worker's thread

    def _busy(self) -> bool:
        return bool(self._talks)

    def _pass(self) -> None:
        """The next sentence of each of the requests that have waited longest."""
        with self._changed:
            talks = [self._talks.popleft() for _ in range(min(self._task.slots, len(self._talks)))]
        talks = [talk for talk in talks if not talk.gone]
        if not talks:
            return
        jobs = [Job(talk.left[0][1], talk.request, talk.language, talk.left[0][0], talk.adapter) for talk in talks]
        try:
            for at, spoken in self._task.speak(jobs):
                talks[at].left.popleft()
                talks[at].deliver(spoken)
        except Exception:
            for talk in talks:
                if talk.left:
                    talk.deliver(internal_error("the speech failed", self._args))
            raise  # the worker logs it
        with self._changed:
            self._talks.extend(talk for talk in talks if talk.left and not talk.gone)

    def _fail(self, failed: Failed) -> None:
        with self._changed:
            talks, self._talks = self._talks, deque()
        for talk in talks:
            talk.deliver(failed)


def build(args: ServeArgs, base: Base, answers: bool) -> Speaker:
    """The worker on a base for `speak`."""
    return Speaker(load_task("speak", args, base, slots=args.voice.batch), args)
