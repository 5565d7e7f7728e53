"""One base with many adapters behind a bounded queue: a worker's thread runs the engine, answers are streamed."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from kauli.models.engine.generative import Generative
from kauli.models.engine.ticket import Ticket
from kauli.models.errors import UsageError
from kauli.models.requests import Progress, TextRequest, TranscriptionRequest
from kauli.serving.events import Event, Failed, Piece, Refused, Started, internal_error
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.adapters import AdapterWorker

HANDOVERS = 40
"""Pieces sent in a second, of all streams together; sending one between processes costs milliseconds."""

R = TypeVar("R", TextRequest, TranscriptionRequest)
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    """An accepted request; `deliver` hands an event to the loop that waits for it."""

    deliver: Callable[[Event], None]
    tickets: dict[Ticket, int]
    """Each unfinished answer's ticket -> its index."""
    left: bool = False
    """Whether its client has left."""


class Generator(AdapterWorker, Generic[R]):
    """Answers requests from the worker's thread; `stream` is called from any event loop. No Ray in here."""

    _task: Generative
    probe: R
    """The request by which `check` tests that the engine answers."""
    param = "messages"
    """The field of a body that a task's UsageError is about."""

    def __init__(self, task: Generative, args: ServeArgs) -> None:
        super().__init__("generator", args, task)
        task.prepare()
        self._max_queue = args.max_queue
        # Tokenizing a long prompt does not hold up the engine.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._open = 0  # answers that are waiting or in progress
        self._jobs: dict[Ticket, _Job] = {}
        self._thread.start()

    async def stream(self, request: R, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """`Started`, then pieces until each of the `n` answers has a `finish`; or `Failed`, as the last event.

        With `whole` each answer is one piece. Else the first piece comes at once, and later ones at a rate of
        `HANDOVERS` a second for all streams together: each one costs as much as some tokens. Leaving the iteration
        cancels the request.
        """
        until = time.monotonic() + self._deadline_s
        try:
            self._enter(request.n)
        except Refused as refusal:
            yield refusal.failed
            return
        taken = False
        job: _Job | None = None
        try:
            tokens = await self._before(until, asyncio.wrap_future(self._tokenizing.submit(self._tokens, request)))
            request = self._limited(request, tokens)
            if adapter:
                await self._take(adapter, until)
                taken = True
            loop = asyncio.get_running_loop()
            events: asyncio.Queue[Event] = asyncio.Queue()

            def deliver(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(events.put_nowait, event)

            job = _Job(deliver, {})
            begun = job
            self._post(lambda: self._begin(begun, request, adapter, tokens))
            unfinished = request.n
            handed = float("-inf")
            while unfinished:
                pause = self._deadline_s if whole else self._open / HANDOVERS
                gathered = await self._gather(events, until, handed + pause, unfinished)
                unfinished -= sum(event.finish is not None for event in gathered if isinstance(event, Piece))
                for event in gathered:
                    yield event
                    if isinstance(event, Failed):
                        return
                    if isinstance(event, Piece):
                        handed = time.monotonic()
        except Refused as refusal:
            yield refusal.failed
        finally:
            if job is not None:
                job.left = True
                for ticket in list(job.tickets):
                    ticket.cancelled = True
            with self._changed:
                self._open -= request.n
                self._changed.notify()
            if taken and adapter:
                self._release(adapter)

    async def check(self) -> str | None:
        """None when the engine works: a request is in progress, or the probe is answered now. Else what is wrong."""
        wrong = await super().check()
        if wrong or self._jobs:
            return wrong
        async for event in self.stream(self.probe, None):
            if isinstance(event, Failed) and event.status != 429:
                return event.message
        return None

    def close(self) -> None:
        """Stop after the current pass; unfinished requests fail with 503."""
        super().close()
        self._tokenizing.shutdown(wait=False, cancel_futures=True)

    # Before a request reaches the engine

    def _enter(self, answers: int) -> None:
        with self._changed:
            self._refuse_stopped()
            # A request for many answers is accepted when nothing waits, however many they are.
            if self._open and self._open + answers > self._task.slots + self._max_queue:
                text = f"{self._max_queue} answers are already waiting; retry later"
                raise Refused(Failed(429, text, "queue_full"))
            self._open += answers

    def _tokens(self, request: R) -> list[int]:
        """The prompt's tokens; raises Refused."""
        try:
            return self._task.prompt_tokens(request)
        except UsageError as error:  # such as a different number of marks and media
            raise Refused(Failed(400, str(error), "invalid_value", self.param)) from None

    def _limited(self, request: R, tokens: list[int]) -> R:
        """The request with its number of new tokens; raises Refused where prompt and answer exceed the context."""
        return request

    async def _gather(self, events: asyncio.Queue[Event], until: float, pause: float, unfinished: int) -> list[Event]:
        """The events up to the time `pause`, at least one, each answer's pieces as one; fewer at the end."""
        pieces: dict[int, Piece] = {}
        while True:
            try:
                event = events.get_nowait()
            except asyncio.QueueEmpty:
                if pieces and time.monotonic() >= pause:
                    return list(pieces.values())
                try:
                    wait = min(until, pause) if pieces else until
                    event = await asyncio.wait_for(events.get(), max(0.0, wait - time.monotonic()))
                except TimeoutError:
                    if time.monotonic() >= until:
                        raise self._late() from None
                    continue
            if not isinstance(event, Piece):
                return [*pieces.values(), event]
            pieces[event.index] = _joined(pieces.get(event.index), event)
            if sum(piece.finish is not None for piece in pieces.values()) == unfinished:
                return list(pieces.values())

    # In the worker's thread

    def _busy(self) -> bool:
        return self._task.busy

    def _pass(self) -> None:
        for ticket, progress in self._task.step():
            self._tell(ticket, progress)

    def _begin(self, job: _Job, request: R, adapter: str | None, tokens: list[int]) -> None:
        if job.left:
            return
        try:
            tickets = self._task.submit(request, adapter, tokens)
        except UsageError as error:  # such as media for an adapter without a connector
            job.deliver(Failed(400, str(error), "invalid_value", self.param))
            return
        except Exception:
            job.deliver(internal_error("the request could not begin", self._args))
            raise
        job.tickets.update((ticket, index) for index, ticket in enumerate(tickets))
        self._jobs.update((ticket, job) for ticket in tickets)
        if job.left:  # while it was submitted
            for ticket in tickets:
                ticket.cancelled = True
        job.deliver(Started(len(tokens)))

    def _tell(self, ticket: Ticket, progress: Progress) -> None:
        job = self._jobs.get(ticket)
        if job is None:  # it failed with an earlier pass
            return
        index = job.tickets[ticket]
        if progress.finish:
            del self._jobs[ticket], job.tickets[ticket]
        if progress.finish == "failed":
            text = f"'{ticket.generation.adapter or self._task.base.name}' computes numbers that are not finite"
            job.deliver(Failed(500, text, "not_finite", "model"))
        elif progress.finish != "cancelled" and (progress.text or progress.tokens or progress.finish):
            job.deliver(Piece(**vars(progress), index=index))

    def _fail(self, failed: Failed) -> None:
        for job in set(self._jobs.values()):
            job.deliver(failed)
        for ticket in self._jobs:
            ticket.cancelled = True
        self._jobs.clear()


def _joined(one: Piece | None, other: Piece) -> Piece:
    if one is None:
        return other
    return replace(
        other, text=one.text + other.text, tokens=one.tokens + other.tokens, logprobs=one.logprobs + other.logprobs,
        echo=one.echo + other.echo,
    )  # fmt: skip
