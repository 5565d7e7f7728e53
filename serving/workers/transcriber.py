"""Speech behind a bounded queue: one copy of a recogniser transcribes with many adapters, and encodes for connectors.

What is asked for as features while the engine is busy with a pass is computed together behind it, and kept by the hash
of its content.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from kauli.models.adapters.registry import Registry
from kauli.models.media.decode import RATE, AudioLimits, MediaError, content_key, decode_audio
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import WINDOW, AudioTower
from kauli.models.speech.whisper import WhisperTask
from kauli.serving.events import EncodedMedia, Failed, MediaForm, Refused
from kauli.serving.workers.feature_cache import FeatureCache, Key
from kauli.serving.workers.generator import Generative, Generator

_SECONDS_AT_ONCE = 60.0  # of recordings that one pass of the bare encoder takes: transcripts wait for it
_QUIET = np.random.default_rng(0).uniform(-0.01, 0.01, RATE // 5).astype(np.float32)

_log = logging.getLogger(__name__)


class Recogniser(Generative, Protocol):
    """A task that transcribes clips of up to `seconds`."""

    @property
    def seconds(self) -> float:
        """The longest clip that it hears at once."""
        ...


@dataclass(eq=False)
class _Heard:
    """A recording whose features are to be computed."""

    key: Key
    samples: Any
    stack: int
    done: Future[np.ndarray] = field(default_factory=Future)

    @property
    def seconds(self) -> float:
        return max(WINDOW, len(self.samples) / RATE)


class Transcriber(Generator[TranscriptionRequest]):
    """Transcribes clips, and gives connectors what the bare encoder hears; both in the one thread of the engine."""

    probe = TranscriptionRequest(_QUIET, max_tokens=1, full_window=False)
    param = "language"

    def __init__(
        self,
        task: Recogniser,
        registry: Registry,
        *,
        cache_bytes: int = 67_108_864,
        max_queue: int = 64,
        max_adapters: int = 32,
        deadline_s: float = 300.0,
    ) -> None:
        # Before the layers of the encoder are wrapped for adapters: its hash goes by their names.
        self._tower = AudioTower(task) if isinstance(task, WhisperTask) else None
        self._longest = task.seconds
        self._features = FeatureCache(cache_bytes)
        self._waiting: deque[_Heard] = deque()
        self._pending: dict[Key, Future[np.ndarray]] = {}
        self._times = {True: (0, 0.0), False: (0, 0.0)}
        """Cached or not -> recordings and the seconds that they took together."""
        super().__init__(task, registry, max_queue=max_queue, max_adapters=max_adapters, deadline_s=deadline_s)

    async def longest(self) -> float:
        """The seconds of sound that it hears at once."""
        return self._longest

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A recording as a connector wants it; refused where that was trained with another encoder."""
        if self._tower is None or form.tower != self._tower.sha256:
            served = f"{self._tower.name} ({self._tower.sha256[:12]})" if self._tower else self._task.base.name
            text = (
                f"the adapter hears by the encoder of {form.encoder} ({form.tower[:12]}), and the one served here is "
                f"{served}: serve with the setting speech: {form.encoder}"
            )
            return Failed(503, text, "wrong_encoder", "model")
        began = time.monotonic()
        try:
            values, cached = await self._before(began + self._deadline_s, self._encoded(content, form.stack))
        except MediaError as error:
            return Failed(400, str(error), "invalid_audio")
        except Refused as refusal:
            return refusal.failed
        count, seconds = self._times[cached]
        self._times[cached] = count + 1, seconds + time.monotonic() - began
        return EncodedMedia(values.copy(), cached)  # torch warns of arrays that are read-only

    async def counts(self) -> dict[str, float]:
        """Of the features: `hits` and `misses` of the cache, and the mean time of each in ms, `hit_ms`, `miss_ms`."""
        (hits, hit_s), (misses, miss_s) = self._times[True], self._times[False]
        means = {"hit_ms": 1000 * hit_s / max(1, hits), "miss_ms": 1000 * miss_s / max(1, misses)}
        return {"hits": hits, "misses": misses, **{name: round(value, 2) for name, value in means.items()}}

    def close(self) -> None:
        """Stop after the current pass; what is unfinished fails with 503."""
        super().close()
        self._fail_features(list(self._waiting), Refused(Failed(503, "the service is stopping", "unavailable")))

    async def _encoded(self, content: bytes, stack: int) -> tuple[np.ndarray, bool]:
        """The features, and whether they were cached. Raises Refused and MediaError."""
        key = stack, await asyncio.to_thread(content_key, content)
        values = self._features.get(key)
        if values is not None:
            return values, True
        with self._changed:
            done = self._pending.get(key)
        if done is None:
            limits = AudioLimits(max_seconds=self._longest)
            recording = await asyncio.to_thread(decode_audio, content, limits)
            done = self._ask(_Heard(key, recording.samples, stack))
        # Shielded: others may wait for the same recording.
        return await asyncio.shield(asyncio.wrap_future(done)), False

    def _ask(self, job: _Heard) -> Future[np.ndarray]:
        """What there is to wait for; each recording is computed once, however many ask."""
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise Refused(Failed(503, "the speech encoder has stopped", "unavailable"))
            if job.key in self._pending:
                return self._pending[job.key]
            if len(self._waiting) >= self._max_queue:
                text = f"{len(self._waiting)} recordings are waiting already: try again soon"
                raise Refused(Failed(429, text, "queue_full"))
            self._pending[job.key] = job.done
            self._waiting.append(job)
        self._post(self._listen)
        return job.done

    # The engine's thread

    def _listen(self) -> None:
        """Compute the features of what waits, as much as one pass should take."""
        with self._changed:
            jobs: list[_Heard] = []
            while self._waiting:
                first = self._waiting[0]
                same = not jobs or first.stack == jobs[0].stack
                if jobs and (not same or sum(job.seconds for job in [*jobs, first]) > _SECONDS_AT_ONCE):
                    break
                jobs.append(self._waiting.popleft())
        if not jobs:  # an earlier call took them all
            return
        assert self._tower is not None
        try:
            found = self._tower.features([job.samples for job in jobs], jobs[0].stack)
        except Exception:
            # One bad batch must not end the service: its requests fail, the log has the reason.
            _log.exception("encoding %d recordings failed", len(jobs))
            text = "the encoding failed; the service's log says why"
            self._fail_features(jobs, Refused(Failed(500, text, "internal_error")))
            return
        for job, features in zip(jobs, found, strict=True):
            values = features.half().numpy()  # in 16 bits, as training keeps them
            self._features.put(job.key, values)
            with self._changed:
                self._pending.pop(job.key, None)
            job.done.set_result(values)

    def _fail_features(self, jobs: Sequence[_Heard], error: Exception) -> None:
        for job in jobs:
            with self._changed:
                self._pending.pop(job.key, None)
            job.done.set_exception(error)
