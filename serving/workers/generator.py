"""One base with many adapters behind a bounded queue: a thread of its own runs the engine, answers stream back."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

from kauli.models.adapters.registry import Registry
from kauli.models.engine.engine import Progress, Ticket
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TextRequest, TranscriptionRequest
from kauli.serving.events import Event, Failed, Piece, Refused, Started
from kauli.serving.workers.adapter_cache import Adaptable, AdapterCache

HANDOVERS = 40
"""Pieces handed over in a second, of all streams together; a hand-over between processes costs milliseconds."""
_LOADERS = 4  # adapters loaded side by side

T = TypeVar("T")
R = TypeVar("R", TextRequest, TranscriptionRequest)
_log = logging.getLogger(__name__)


class Generative(Adaptable, Protocol):
    """A task that answers requests step by step: `TextTask`, or one that transcribes."""

    slots: int

    @property
    def window(self) -> int:
        """Tokens of a prompt and its answer together."""
        ...

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        ...

    def prepare(self) -> None:
        """Make the engine, before anything else runs in another thread."""
        ...

    def prompt_tokens(self, request: Any) -> list[int]:
        """The tokens before the answer; UsageError where there can't be any."""
        ...

    def submit(self, request: Any, adapter: str | None, tokens: list[int] | None = None) -> list[Ticket]:
        """Queue a request, a ticket for each of its answers; UsageError where it can't be answered."""
        ...

    def step(self) -> list[tuple[Ticket, Progress]]:
        """One pass of everything that is queued."""
        ...


@dataclass(eq=False)
class _Job:
    """An accepted request; `deliver` hands an event to the loop that waits for it."""

    deliver: Callable[[Event], None]
    tickets: dict[Ticket, int]
    """Each unfinished answer's ticket -> its index."""
    left: bool = False
    """Whether nobody waits for it any more."""


class Generator(Generic[R]):
    """Answers requests from one thread of its own; `stream` is called from any event loop. No Ray in here."""

    probe: R
    """The request by which `check` sees that the engine answers."""
    param = "messages"
    """The field of a body that a task's UsageError is about."""

    def __init__(
        self,
        task: Generative,
        registry: Registry,
        *,
        max_queue: int = 64,
        max_adapters: int = 32,
        deadline_s: float = 300.0,
    ) -> None:
        task.prepare()
        self._task = task
        self._registry = registry
        self._most = task.slots + max_queue
        self._max_queue = max_queue
        self._deadline_s = deadline_s
        self._cache = AdapterCache(task, registry, max_adapters, self._in_engine)
        # Reading a long prompt and loading adapters hold up neither the engine nor each other.
        self._tokenizing = ThreadPoolExecutor(1, "tokenizing")
        self._loading = ThreadPoolExecutor(_LOADERS, "loading")
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._open = 0  # answers that are waiting or being made
        self._jobs: dict[Ticket, _Job] = {}
        self._stopping = False
        self._progress = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="generator", daemon=True)
        self._thread.start()

    async def stream(self, request: R, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """`Started`, pieces until each answer has a `finish`, or `Failed`; who leaves the iteration cancels it.

        With `whole` each answer comes as one piece. Else the first piece comes at once, and later ones so that all
        streams together are handed over `HANDOVERS` times a second: each time costs what some tokens cost.
        """
        until = time.monotonic() + self._deadline_s
        refused = self._enter(request.n)
        if refused:
            yield refused
            return
        taken = False
        job: _Job | None = None
        try:
            tokens = await self._before(until, self._run(self._tokenizing, self._tokens, request))
            request = self._limited(request, tokens)
            if adapter:
                taken = self._cache.take(adapter)
                if not taken:
                    await self._load(adapter, until)
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
        """None when the engine answers: it has just moved, or it answers the probe now. Else what is wrong."""
        if not self._thread.is_alive():
            return "the generator's thread has ended"
        if self._jobs:
            idle = time.monotonic() - self._progress
            return None if idle < 60 else f"no token for {idle:.0f} seconds"
        async for event in self.stream(self.probe, None):
            if isinstance(event, Failed) and event.status != 429:
                return event.message
        return None

    async def adapters(self) -> list[dict[str, Any]]:
        """`adapter` and `in_use` of each that is loaded."""
        return self._cache.listed()

    async def load(self, adapter: str) -> Failed | None:
        """Load an adapter ahead of its first request; None, or why it can't be."""
        try:
            if not self._cache.take(adapter):
                await self._load(adapter, time.monotonic() + self._deadline_s)
        except Refused as refusal:
            return refusal.failed
        self._release(adapter)
        return None

    async def unload(self, adapter: str) -> bool:
        """Forget an adapter once no request uses it; whether it was loaded."""
        return await asyncio.to_thread(self._cache.unload, adapter)

    def alive(self) -> bool:
        """Whether the generator's thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the current pass; what is unfinished fails with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=30)
        self._tokenizing.shutdown(wait=False, cancel_futures=True)
        self._loading.shutdown(wait=False, cancel_futures=True)

    # Before a request reaches the engine

    def _enter(self, answers: int) -> Failed | None:
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                return Failed(503, "the generator has stopped", "unavailable")
            # One that asks for many answers may begin when nobody waits, however many they are.
            if self._open and self._open + answers > self._most:
                return Failed(429, f"{self._max_queue} answers are waiting already: try again soon", "queue_full")
            self._open += answers
        return None

    def _tokens(self, request: R) -> list[int]:
        """The prompt's tokens; raises Refused."""
        try:
            return self._task.prompt_tokens(request)
        except UsageError as error:  # such as marks and media that don't fit each other
            raise Refused(Failed(400, str(error), "invalid_value", self.param)) from None

    def _limited(self, request: R, tokens: list[int]) -> R:
        """The request with its number of new tokens; raises Refused where prompt and answer don't fit together."""
        return request

    async def _load(self, adapter: str, until: float) -> None:
        loading = self._loading.submit(self._cache.load, adapter)
        try:
            await self._before(until, asyncio.wrap_future(loading))
        except KauliError as error:
            reason = f": {error}"
        except (Refused, asyncio.CancelledError):
            # It may end well all the same, and then counts a use that nobody has.
            loading.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else self._release(adapter)
            )
            raise
        except Exception:
            # A damaged adapter must not take the other requests with it.
            _log.exception("adapter %s failed to load", adapter)
            reason = ""
        else:
            return
        raise Refused(unloadable(adapter, reason))

    def _release(self, adapter: str) -> None:
        # In the engine's thread, behind the pass that lets go of the request; never in the pool, whose threads may all
        # be waiting for just this.
        self._post(lambda: self._cache.release(adapter))

    async def _gather(self, events: asyncio.Queue[Event], until: float, pause: float, unfinished: int) -> list[Event]:
        """What comes up to the time `pause`, at least one event, each answer's pieces as one; less when all is said."""
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

    def _late(self) -> Refused:
        text = f"no complete answer within {self._deadline_s:g} seconds"
        return Refused(Failed(504, text, "deadline_exceeded"))

    async def _before(self, until: float, waiting: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(waiting, max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise self._late() from None

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[..., T], *values: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *values)

    # The engine's thread

    def _post(self, call: Callable[[], None]) -> None:
        """Have the engine's thread run `call` before its next pass."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify()

    def _in_engine(self, call: Callable[[], None]) -> None:
        """Run `call` in the engine's thread and wait for it."""
        if threading.current_thread() is self._thread:
            call()
            return
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
                done.set_result(None)
            except BaseException as error:  # belongs to whoever waits
                done.set_exception(error)

        self._post(run)
        done.result()

    def _work(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._task.busy or self._stopping)
                calls, self._calls = self._calls, deque()
            try:
                # First what was cancelled leaves, then what was posted may rely on it.
                if self._task.busy:
                    for ticket, progress in self._task.step():
                        self._tell(ticket, progress)
            except Exception:
                # One bad pass must not end the service: its requests fail, the log has the reason.
                _log.exception("a pass with %d answers failed", len(self._jobs))
                self._fail(Failed(500, "the generation failed; the service's log says why", "internal_error"))
            self._progress = time.monotonic()
            for call in calls:
                try:
                    call()
                except Exception:  # a bug of ours; the others' requests go on
                    _log.exception("a posted call failed")
        self._fail(Failed(503, "the service is stopping", "unavailable"))

    def _begin(self, job: _Job, request: R, adapter: str | None, tokens: list[int]) -> None:
        if job.left:
            return
        try:
            tickets = self._task.submit(request, adapter, tokens)
        except UsageError as error:  # such as media for an adapter without a connector
            job.deliver(Failed(400, str(error), "invalid_value", self.param))
            return
        except Exception:
            job.deliver(Failed(500, "the request could not begin; the service's log says why", "internal_error"))
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
            # Of a clip, which may name none, but may have been heard
            language = getattr(getattr(ticket.generation, "memory", None), "language", None)
            job.deliver(
                Piece(
                    progress.text, progress.tokens, progress.finish, index, progress.logprobs, language, progress.words
                )
            )

    def _fail(self, failed: Failed) -> None:
        for job in set(self._jobs.values()):
            job.deliver(failed)
        for ticket in self._jobs:
            ticket.cancelled = True
        self._jobs.clear()


def unloadable(adapter: str, reason: str) -> Failed:
    """The answer where an adapter can't be read, for a reason that begins with a colon or is empty."""
    return Failed(503, f"adapter '{adapter}' can't be loaded{reason}", "adapter_failed", "model")


def _joined(one: Piece | None, other: Piece) -> Piece:
    if one is None:
        return other
    logprobs = one.logprobs + other.logprobs
    return replace(other, text=one.text + other.text, tokens=one.tokens + other.tokens, logprobs=logprobs)
