"""One base with many adapters behind a bounded queue: requests become static batches, answers stream back."""

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from kauli.models.adapters import check_base
from kauli.models.errors import KauliError
from kauli.models.registry import Registry
from kauli.models.text import Message, TextRequest, TextTask
from kauli.serving.events import Ask, Event, Failed, Piece, Started

DEFAULT_TOKENS = 128
"""New tokens of a request that names no number."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    ask: Ask
    adapter: str | None
    deadline: float
    deliver: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    request: TextRequest | None = None

    def over(self) -> bool:
        return self.cancelled.is_set() or time.monotonic() > self.deadline


class TextGenerator:
    """Answers requests from one thread of its own; `stream` is called from any event loop. No Ray in here."""

    def __init__(
        self,
        task: TextTask,
        registry: Registry,
        *,
        max_batch: int = 16,
        max_queue: int = 64,
        max_adapters: int = 32,
        deadline_s: float = 300.0,
    ) -> None:
        self._task = task
        self._registry = registry
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._max_adapters = max_adapters
        self._deadline_s = deadline_s
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._loaded: OrderedDict[str, None] = OrderedDict()  # least recently used first
        self._stopping = False
        self._progress = time.monotonic()
        self._busy = False
        self._thread = threading.Thread(target=self._work, name="text-generator", daemon=True)
        self._thread.start()

    async def stream(self, ask: Ask, adapter: str | None) -> AsyncGenerator[Event]:
        """`Started`, pieces until one has a `finish`, or `Failed`; leaving the iteration cancels the request."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def deliver(event: Event) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = _Job(ask, adapter, time.monotonic() + self._deadline_s, deliver)
        refused = self._enqueue(job)
        if refused:
            yield refused
            return
        try:
            while True:
                event = await events.get()
                yield event
                if isinstance(event, Failed) or (isinstance(event, Piece) and event.finish):
                    return
        finally:
            job.cancelled.set()

    def _enqueue(self, job: _Job) -> Failed | None:
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                return Failed(503, "the generator has stopped", "unavailable")
            if len(self._waiting) >= self._max_queue:
                return Failed(429, f"{self._max_queue} requests are waiting already: try again soon", "queue_full")
            self._waiting.append(job)
            self._changed.notify()
        return None

    async def check(self) -> str | None:
        """None when the engine answers: it has just moved, or it generates one token now. Else what is wrong."""
        if not self._thread.is_alive():
            return "the generator's thread has ended"
        if self._busy:
            idle = time.monotonic() - self._progress
            return None if idle < 60 else f"no token for {idle:.0f} seconds"
        events = self.stream(Ask((("user", "Hi"),), max_tokens=1), None)
        async for event in events:
            if isinstance(event, Failed) and event.status != 429:
                return event.message
        return None

    def alive(self) -> bool:
        """Whether the generator's thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop after the current step; what waits fails with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join(timeout=30)

    # The thread

    def _work(self) -> None:
        while batch := self._next_batch():
            self._busy = True
            self._progress = time.monotonic()
            try:
                self._answer(batch)
            except Exception:
                # One bad batch must not end the service: its requests fail, the log has the reason.
                _log.exception("a batch of %d requests failed", len(batch))
                for job in batch:
                    job.deliver(Failed(500, "the generation failed; the service's log says why", "internal_error"))
            finally:
                self._busy = False

    def _next_batch(self) -> list[_Job]:
        """Wait for work; an empty list means stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                for job in self._waiting:
                    job.deliver(Failed(503, "the service is stopping", "unavailable"))
                self._waiting.clear()
                return []
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_batch))]

    def _answer(self, batch: list[_Job]) -> None:
        wanted = {job.adapter for job in batch if job.adapter}
        jobs = [job for job in batch if self._prepare(job, wanted)]
        if not jobs:
            return
        requests = [job.request for job in jobs if job.request is not None]
        finished: set[int] = set()
        steps = self._task.generate(
            requests, [job.adapter for job in jobs], lambda row: self._stopping or jobs[row].over()
        )
        for chunks in steps:
            self._progress = time.monotonic()
            for chunk in chunks:
                if chunk.finish == "cancelled":
                    continue
                jobs[chunk.row].deliver(Piece(chunk.text, chunk.tokens, chunk.finish))
                if chunk.finish:
                    finished.add(chunk.row)
        for row, job in enumerate(jobs):
            if row not in finished and not job.cancelled.is_set():
                job.deliver(self._unfinished())

    def _unfinished(self) -> Failed:
        if self._stopping:
            return Failed(503, "the service is stopping", "unavailable")
        return Failed(504, f"no complete answer within {self._deadline_s:g} seconds", "deadline_exceeded")

    def _prepare(self, job: _Job, wanted: set[str]) -> bool:
        """Load the job's adapter and check that its prompt fits; False when it has failed or nobody waits for it."""
        if job.cancelled.is_set():
            return False
        if job.over():
            job.deliver(self._unfinished())
            return False
        try:
            if job.adapter:
                self._load(job.adapter, wanted)
        except KauliError as error:
            job.deliver(Failed(503, f"adapter '{job.adapter}' can't be loaded: {error}", "adapter_failed", "model"))
            return False
        except Exception:
            # A damaged adapter must not take the other requests of the batch with it.
            _log.exception("adapter %s failed to load", job.adapter)
            job.deliver(Failed(503, f"adapter '{job.adapter}' can't be loaded", "adapter_failed", "model"))
            return False
        ask = job.ask
        request = TextRequest(
            messages=tuple(Message(role, content) for role, content in ask.messages), max_tokens=DEFAULT_TOKENS,
            temperature=ask.temperature, top_p=ask.top_p, top_k=ask.top_k, seed=ask.seed, stop=ask.stop,
            min_tokens=ask.min_tokens, ignore_eos=ask.ignore_eos, repetition_penalty=ask.repetition_penalty,
        )  # fmt: skip
        tokens = len(self._task.prompt_tokens(request))
        room = self._task.context - tokens
        if room < (ask.max_tokens or 1):
            asked = f" and {ask.max_tokens} new ones" if ask.max_tokens else ""
            text = f"the prompt has {tokens} tokens{asked}; the context holds {self._task.context}"
            job.deliver(Failed(400, text, "context_length_exceeded", "messages"))
            return False
        job.request = replace(request, max_tokens=ask.max_tokens or min(DEFAULT_TOKENS, room))
        job.deliver(Started(tokens))
        return True

    def _load(self, spec: str, wanted: set[str]) -> None:
        if spec in self._loaded:
            self._loaded.move_to_end(spec)
            return
        surplus = max(0, len(self._loaded) + 1 - self._max_adapters)
        for old in [key for key in self._loaded if key not in wanted][:surplus]:
            self._task.remove_adapter(old)
            del self._loaded[old]
        folder = self._registry.fetch(spec)
        check_base(self._registry.card(spec), self._task.base)
        self._task.add_adapter(spec, folder)
        self._loaded[spec] = None
