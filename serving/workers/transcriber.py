"""The worker for audio: one copy of a recogniser transcribes with many adapters, and encodes audio for connectors.

Clips to encode that arrive during a pass of the engine are encoded together after it.
"""

import asyncio
import time
from collections import deque

import numpy as np

from kauli.models.bases.find import Base
from kauli.models.errors import MediaError
from kauli.models.media.decode import RATE, AudioLimits, content_key, decode_audio
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.audio_tower import WINDOW, AudioTower
from kauli.models.speech.task import Recogniser
from kauli.serving.events import EncodedMedia, Failed, MediaForm, Refused
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.generator import Generator
from kauli.serving.workers.worker import Encoding, EncodingQueue, load_task, refusable, wrong_encoder

_SECONDS_AT_ONCE = 60.0  # of audio that is encoded between two passes: transcripts wait for it
_QUIET = np.random.default_rng(0).uniform(-0.01, 0.01, RATE // 5).astype(np.float32)


class Transcriber(Generator[TranscriptionRequest]):
    """Transcribes clips, and encodes audio for connectors by the encoder without adapters; both in one thread."""

    probe = TranscriptionRequest(_QUIET, max_tokens=1, full_window=False)
    param = "language"

    def __init__(self, task: Recogniser, args: ServeArgs) -> None:
        # Before the layers of the encoder are wrapped for adapters: its hash depends on their names.
        self._tower = AudioTower(task) if task.encodes else None
        self._longest = task.seconds
        super().__init__(task, args)
        self._encodings = EncodingQueue(
            self, _together, self._compute, "audio clips", cache_bytes=args.audio.cache_bytes, max_queue=args.max_queue
        )

    async def longest(self) -> float:
        """The longest clip in seconds."""
        return self._longest

    @refusable
    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia:
        """An audio file as a connector takes it; refused where that was trained with another encoder."""
        if self._tower is None or form.tower != self._tower.sha256:
            served = f"{self._tower.name} ({self._tower.sha256[:12]})" if self._tower else self._task.base.name
            raise Refused(wrong_encoder("audio", form, served))
        began = time.monotonic()
        try:
            values, cached = await self._before(began + self._deadline_s, self._encoded(content, form.stack))
        except MediaError as error:
            raise Refused(Failed(400, str(error), "invalid_audio")) from None
        self._encodings.count(cached, began)
        return EncodedMedia(values.copy(), cached)  # torch warns of arrays that are read-only

    async def counts(self) -> dict[str, float]:
        """Of the features: see `EncodingQueue.counts`."""
        return self._encodings.counts()

    async def _encoded(self, content: bytes, stack: int) -> tuple[np.ndarray, bool]:
        """The features, and whether they were cached. Raises Refused and MediaError."""
        key = stack, await asyncio.to_thread(content_key, content)
        found = self._encodings.find(key)
        if found is None:
            limits = AudioLimits(max_seconds=self._longest)
            audio = await asyncio.to_thread(decode_audio, content, limits)
            [found] = self._encodings.take([Encoding(key, audio.samples)])
            return (await self._encodings.wait(found, float("inf")))[0], False
        return await self._encodings.wait(found, float("inf"))

    def _compute(self, jobs: list[Encoding]) -> None:
        assert self._tower is not None
        stack = int(jobs[0].key[0])
        found = self._tower.features([job.content for job in jobs], stack)
        self._encodings.finish(jobs, (features.half().numpy() for features in found))  # 16 bits, as in training


def _together(queue: deque[Encoding]) -> list[Encoding]:
    """The next clips of one shape, no more than one pass should take."""
    jobs: list[Encoding] = []
    seconds = 0.0
    while queue:
        seconds += max(WINDOW, len(queue[0].content) / RATE)
        if jobs and (queue[0].key[0] != jobs[0].key[0] or seconds > _SECONDS_AT_ONCE):
            break
        jobs.append(queue.popleft())
    return jobs


def build(args: ServeArgs, base: Base, answers: bool) -> Transcriber:
    """The worker on a base for `transcribe`."""
    return Transcriber(load_task("transcribe", args, base, slots=args.audio.batch), args)
