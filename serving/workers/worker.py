"""Shared by all workers: a thread that computes, a deadline for requests, and a queue that encodes media once."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from kauli.models.bases.find import Base
from kauli.models.engine.precision import choose_precision, place
from kauli.models.progress import note
from kauli.models.tasks import load_served
from kauli.serving.events import Failed, MediaForm, Refused, internal_error
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.feature_cache import FeatureCache, Key

STUCK_S = 60.0
"""A pass that takes longer counts as a failure of the worker."""

P = ParamSpec("P")
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Worker:
    """A thread of its own that runs posted calls and `_pass`; its other methods are called from any event loop."""

    def __init__(self, name: str, args: ServeArgs) -> None:
        self._name, self._args, self._deadline_s = name, args, args.deadline_s
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._began: float | None = None
        """When the pass that runs now began."""
        self._queues: list[EncodingQueue] = []
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def check(self) -> str | None:
        """None when the worker works, else what is wrong."""
        if not self._thread.is_alive():
            return f"the thread of the {self._name} has ended"
        began = self._began
        busy = 0.0 if began is None else time.monotonic() - began
        return None if busy < STUCK_S else f"the {self._name} has computed the same pass for {busy:.0f} seconds"

    def close(self) -> None:
        """Stop after the current pass; unfinished requests fail with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    def _busy(self) -> bool:
        """Whether `_pass` has something to do."""
        return False

    def _pass(self) -> None:
        """One step of the work that isn't posted."""

    def _fail(self, failed: Failed) -> None:
        """End all unfinished requests; what is in a queue for encoding is not among them."""

    def _refuse_stopped(self) -> None:
        """Raise Refused where the thread has ended or will; called with the lock held."""
        if self._stopping or not self._thread.is_alive():
            raise Refused(Failed(503, f"the {self._name} has stopped", "unavailable"))

    async def _before(self, until: float, waiting: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(waiting, max(0.0, until - time.monotonic()))
        except TimeoutError:
            raise self._late() from None

    def _late(self) -> Refused:
        text = f"no complete answer within {self._deadline_s:g} seconds"
        return Refused(Failed(504, text, "deadline_exceeded"))

    def _post(self, call: Callable[[], None]) -> None:
        """Have the thread run `call` after its next pass."""
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()

    def _in_thread(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread and wait for it."""
        if threading.current_thread() is self._thread:
            call()
            return
        done: Future[None] = Future()

        def run() -> None:
            try:
                call()
                done.set_result(None)
            except BaseException as error:  # for the caller
                done.set_exception(error)

        self._post(run)
        done.result()

    def _work(self) -> None:
        while not self._stopping:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._busy() or self._stopping)
                calls, self._calls = self._calls, deque()
            self._began = time.monotonic()
            try:
                # Cancelled requests leave in the pass; posted calls may rely on that.
                if self._busy():
                    self._pass()
            except Exception:
                # One bad pass must not end the service: its requests fail, the log has the reason.
                _log.exception("a pass of the %s failed", self._name)
                self._fail(internal_error(f"the {self._name} failed", self._args))
            for call in calls:
                self._began = time.monotonic()
                try:
                    call()
                except Exception:  # a bug of ours; other requests continue
                    _log.exception("a posted call of the %s failed", self._name)
            self._began = None
        stopping = Failed(503, "the service is stopping", "unavailable")
        self._fail(stopping)
        for queue in self._queues:
            queue.fail_all(stopping)


def refusable(method: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T | Failed]]:
    """The method, which now returns the `Failed` of what it refuses: Ray would wrap the exception."""

    @wraps(method)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T | Failed:
        try:
            return await method(*args, **kwargs)
        except Refused as refusal:
            return refusal.failed

    return call


def load_task(name: str, args: ServeArgs, base: Base, **options: Any) -> Any:
    """A row of `kauli.models.tasks.TASKS` on a base, in the precision that the settings and the machine call for."""
    device = str(place()[0])
    precision = choose_precision(base, device, args.precision)
    note(f"{base.name}: {precision}")
    return load_served(name, base, device=device, dtype=precision.dtype, **options)


def unloadable(adapter: str, reason: str) -> Failed:
    """The error of an adapter that can't be read; the reason begins with a colon or is empty."""
    return Failed(503, f"adapter '{adapter}' can't be loaded{reason}", "adapter_failed", "model")


def wrong_encoder(worker: str, form: MediaForm, served: str) -> Failed:
    """The error of an adapter whose connector was trained with another encoder than the one that runs."""
    text = (
        f"the adapter was trained with the encoder of {form.encoder} ({form.tower[:12]}), and this service runs "
        f"{served}: serve with the setting {worker}.base: {form.encoder}"
    )
    return Failed(503, text, "wrong_encoder", "model")


@dataclass(eq=False)
class Encoding:
    """Something to encode: `content` is what the worker's thread takes."""

    key: Key
    content: Any
    done: Future[np.ndarray] = field(default_factory=Future)


class EncodingQueue:
    """What a worker is to encode: bounded, each content once however many ask, results kept by the content's hash.

    The worker's thread calls `choose`, which takes from the queue what goes together (it may wait; the lock is held),
    and `compute`, which calls `finish` or `fail` for each.
    """

    def __init__(
        self, worker: Worker, choose: Callable[[deque[Encoding]], list[Encoding]],
        compute: Callable[[list[Encoding]], None], what: str, *, cache_bytes: int, max_queue: int,
    ) -> None:  # fmt: skip
        self._worker, self._choose, self._compute = worker, choose, compute
        self._what, self._max_queue = what, max_queue
        worker._queues.append(self)
        self._cache = FeatureCache(cache_bytes)
        self._queue: deque[Encoding] = deque()
        self._pending: dict[Key, Encoding] = {}
        self._times = {True: (0, 0.0), False: (0, 0.0)}
        """Cached or not -> the number of contents and the seconds that they took together."""

    def find(self, key: Key) -> np.ndarray | Future[np.ndarray] | None:
        """The result if it is cached, or the future of one that is being computed."""
        with self._worker._changed:
            values = self._cache.get(key)
            pending = self._pending.get(key)
        return values if values is not None else pending.done if pending else None

    def take(self, jobs: Sequence[Encoding]) -> list[np.ndarray | Future[np.ndarray]]:
        """Of each job the cached result, or the future to wait for. Raises Refused."""
        found: list[np.ndarray | Future[np.ndarray]] = []
        with self._worker._changed:
            self._worker._refuse_stopped()
            # A request for more than may wait is accepted when nothing waits.
            if self._queue and len(self._queue) + len(jobs) > self._max_queue:
                text = f"{len(self._queue)} {self._what} are already waiting; retry later"
                raise Refused(Failed(429, text, "queue_full"))
            for job in jobs:
                values = self._cache.get(job.key)
                if values is None and job.key not in self._pending:
                    self._pending[job.key] = job
                    self._queue.append(job)
                    self._worker._post(self._run)
                found.append(self._pending[job.key].done if values is None else values)
        return found

    async def wait(self, found: np.ndarray | Future[np.ndarray], until: float) -> tuple[np.ndarray, bool]:
        """The result, and whether it was cached. Raises Refused, or the error of the content itself."""
        if isinstance(found, np.ndarray):
            return found, True
        # Shielded: others may wait for the same content.
        return await self._worker._before(until, asyncio.shield(asyncio.wrap_future(found))), False

    def count(self, cached: bool, began: float) -> None:
        """Count a content that was asked for at the time `began`."""
        count, seconds = self._times[cached]
        self._times[cached] = count + 1, seconds + time.monotonic() - began

    def counts(self) -> dict[str, float]:
        """`hits` and `misses` of the cache, and the mean time of each in ms, `hit_ms` and `miss_ms`."""
        (hits, hit_s), (misses, miss_s) = self._times[True], self._times[False]
        means = {"hit_ms": 1000 * hit_s / max(1, hits), "miss_ms": 1000 * miss_s / max(1, misses)}
        return {"hits": hits, "misses": misses, **{name: round(value, 2) for name, value in means.items()}}

    # In the worker's thread

    def finish(self, jobs: Iterable[Encoding], results: Iterable[np.ndarray]) -> None:
        """Give each job its result, an array that nothing else writes to."""
        for job, values in zip(jobs, results, strict=True):
            self._cache.put(job.key, values)
            self._forget(job)
            job.done.set_result(values)

    def fail(self, jobs: Iterable[Encoding], error: Exception) -> None:
        """End jobs with an error."""
        for job in jobs:
            self._forget(job)
            if not job.done.done():
                job.done.set_exception(error)

    def fail_all(self, failed: Failed) -> None:
        """End all jobs."""
        self.fail(list(self._pending.values()), Refused(failed))

    def _forget(self, job: Encoding) -> None:
        with self._worker._changed:
            self._pending.pop(job.key, None)

    def _run(self) -> None:
        with self._worker._changed:
            jobs = self._choose(self._queue) if self._queue and not self._worker._stopping else []
        try:
            if jobs:  # else an earlier call took them all
                self._compute(jobs)
        except Exception:
            # One bad batch must not end the service: its requests fail, the log has the reason.
            _log.exception("encoding %d %s failed", len(jobs), self._what)
            self.fail(jobs, Refused(internal_error("the encoding failed", self._worker._args)))
