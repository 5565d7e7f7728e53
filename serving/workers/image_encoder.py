"""Pictures as a connector wants them, and pictures and texts in one space: a thread of its own runs the towers.

What is asked for at the same time is computed together, and what was computed is kept by the hash of its content, for
chat, embeddings and classification alike.
"""

import asyncio
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base
from kauli.models.errors import KauliError
from kauli.models.languages import nfc
from kauli.models.media.decode import ImageLimits, MediaError, content_key, decode_image
from kauli.models.vision.align import AlignTask
from kauli.models.vision.clip import ClipModel
from kauli.models.vision.heads import Head
from kauli.models.vision.image_tower import ImageTower
from kauli.serving.events import NOT_ALIGNED, EncodedMedia, Failed, MediaForm, Ranked, Refused, Vectors
from kauli.serving.routing import public_name
from kauli.serving.workers.feature_cache import FeatureCache, Key

_WAIT_S = 0.003  # how long a picture waits for others to be computed with
_MOST_HEADS = 64
_PICTURE, _TEXT = "picture", "text"  # embeddings; features have their grid in this place of the key

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    key: Key
    content: bytes | str
    done: Future[np.ndarray] = field(default_factory=Future)


class ImageEncoder:
    """The tower of a base and, where its projections are trained, its shared space. No Ray in here.

    Its methods are called from any event loop. `count` says how many tokens a text has.
    """

    def __init__(
        self,
        base: Base,
        tower: ImageTower,
        task: AlignTask | None,
        count: Callable[[str], int],
        registry: Registry,
        *,
        batch: int = 8,
        cache_bytes: int = 67_108_864,
        max_queue: int = 64,
        deadline_s: float = 300.0,
    ) -> None:
        self._base, self._tower, self._task, self._registry = base, tower, task, registry
        self._count = count
        self._batch, self._max_queue, self._deadline_s = batch, max_queue, deadline_s
        self._cache = FeatureCache(cache_bytes)
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._loading = threading.Lock()
        self._reading = threading.Lock()  # a fast tokenizer can't be used by two threads at once
        self._changed = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._pending: dict[Key, _Job] = {}
        self._stopping = False
        self._busy_since: float | None = None
        self._seen = {True: (0, 0.0), False: (0, 0.0)}
        """Cached or not -> pictures and the seconds that they took together."""
        self._thread = threading.Thread(target=self._work, name="image-encoder", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, base: Base, aligned: bool, registry: Registry, **options: Any) -> Self:
        """The encoder on a base of the task `align`, on the GPU where there is one.

        Without `aligned` its image tower alone is kept.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        clip = ClipModel(Path(base.folder))
        tower = ImageTower(clip, public_name(base), device)
        task = AlignTask(base, clip, device, None) if aligned else None
        if task is None and hasattr(clip.model, "text"):
            del clip.model.text  # nearly all of the weights
        return cls(base, tower, task, lambda text: _length(clip.tokens([text])[0].tolist()), registry, **options)

    @property
    def tower_sha256(self) -> str:
        """What its features depend on."""
        return self._tower.sha256

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A picture as a connector wants it; refused where that was trained with another tower."""
        if form.tower != self._tower.sha256:
            text = (
                f"the adapter sees by the tower of {form.encoder} ({form.tower[:12]}), and the encoder served here is "
                f"{self._tower.name} ({self._tower.sha256[:12]}): serve with the setting encoder: {form.encoder}"
            )
            return Failed(503, text, "wrong_encoder", "model")
        try:
            [(values, cached)] = await self._all([(form.grid, content)])
        except Refused as refusal:
            return refusal.failed
        return EncodedMedia(values.copy(), cached)  # torch warns of arrays that are read-only

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors | Failed:
        """Texts, and pictures as their encoded bytes, in the shared space."""
        try:
            return await self._vectors(inputs)
        except Refused as refusal:
            return refusal.failed

    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """What the head of an adapter (`name@version`) makes of each input."""
        try:
            head = await asyncio.to_thread(self._head, adapter)
            return await self._ranked(head, await self._vectors(inputs))
        except Refused as refusal:
            return refusal.failed

    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """How near each input is to the texts of `classes`, without any training."""
        if self._task is None:
            return NOT_ALIGNED
        try:
            vectors = await self._vectors([*inputs, *classes])
        except Refused as refusal:
            return refusal.failed
        text = torch.from_numpy(vectors.values[len(inputs) :])
        none = torch.zeros(0, text.shape[1]), torch.zeros(0, dtype=torch.int64)
        head = Head.fit("zero_shot", *none, list(classes), text, scale=float(self._task.logit_scale))
        return await self._ranked(head, Vectors(vectors.values[: len(inputs)], vectors.tokens))

    async def counts(self) -> dict[str, float]:
        """Of pictures: `hits` and `misses` of the cache, and the mean time of each in ms, `hit_ms` and `miss_ms`."""
        (hits, hit_s), (misses, miss_s) = self._seen[True], self._seen[False]
        means = {"hit_ms": 1000 * hit_s / max(1, hits), "miss_ms": 1000 * miss_s / max(1, misses)}
        return {"hits": hits, "misses": misses, **{name: round(value, 2) for name, value in means.items()}}

    async def check(self) -> str | None:
        """None when the encoder works, else what is wrong."""
        if not self._thread.is_alive():
            return "the encoder's thread has ended"
        began = self._busy_since
        busy = 0.0 if began is None else time.monotonic() - began
        return None if busy < 60 else f"no picture for {busy:.0f} seconds"

    def alive(self) -> bool:
        """Whether the encoder's thread runs."""
        return self._thread.is_alive()

    async def adapters(self) -> list[dict[str, Any]]:
        """The heads that are loaded: `adapter`, `in_use` (a head is in use for an instant only)."""
        return [{"adapter": spec, "in_use": 0} for spec in list(self._heads)]

    async def load(self, adapter: str) -> Failed | None:
        """Load a head ahead of its first request; None, or why it can't be."""
        try:
            await asyncio.to_thread(self._head, adapter)
        except Refused as refusal:
            return refusal.failed
        return None

    async def unload(self, adapter: str) -> bool:
        """Forget a head; whether it was loaded."""
        return self._heads.pop(adapter, None) is not None

    def close(self) -> None:
        """Stop after the current batch; what is unfinished fails with 503."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout=30)

    # Heads

    def _head(self, spec: str) -> Head:
        if self._task is None:
            raise Refused(NOT_ALIGNED)
        with self._loading:
            head = self._heads.pop(spec, None) or self._read_head(spec, self._task.dim)
            self._heads[spec] = head  # the last one used is the last in line
            while len(self._heads) > _MOST_HEADS:
                self._heads.popitem(last=False)
        return head

    def _read_head(self, spec: str, dim: int) -> Head:
        try:
            folder = self._registry.fetch(spec)
            check_base(self._registry.card(spec), self._base)
            head = Head.load(folder)
            if head.width != dim:
                raise KauliError(f"its head takes {head.width} numbers, {self._base.name} gives {dim}.")
        except KauliError as error:
            text = f"adapter '{spec}' can't be loaded: {error}"
            raise Refused(Failed(503, text, "adapter_failed", "model")) from None
        return head

    async def _ranked(self, head: Head, vectors: Vectors) -> list[Ranked]:
        found = (await asyncio.to_thread(head.probabilities, torch.from_numpy(vectors.values))).tolist()
        return [sorted(zip(head.classes, row, strict=True), key=lambda pair: pair[1], reverse=True) for row in found]

    # What is asked for

    async def _vectors(self, inputs: Sequence[str | bytes]) -> Vectors:
        if self._task is None:
            raise Refused(NOT_ALIGNED)
        texts = [nfc(one) for one in inputs if isinstance(one, str)]
        wanted = [(_TEXT, nfc(one)) if isinstance(one, str) else (_PICTURE, one) for one in inputs]
        found = await self._all(wanted)
        return Vectors(np.stack([values for values, _ in found]), await asyncio.to_thread(self._tokens, texts))

    def _tokens(self, texts: Sequence[str]) -> int:
        with self._reading:
            return sum(map(self._count, texts))

    async def _all(self, wanted: Sequence[tuple[int | str, bytes | str]]) -> list[tuple[np.ndarray, bool]]:
        """Each one's array, and whether it was cached. Raises Refused."""
        began = time.monotonic()
        keys = await asyncio.to_thread(lambda: [(what, _hash(content)) for what, content in wanted])
        jobs = [_Job(key, content) for key, (_, content) in zip(keys, wanted, strict=True)]
        found = []
        for place, (job, held) in enumerate(zip(jobs, self._take(jobs), strict=True)):
            cached = isinstance(held, np.ndarray)
            try:
                values = held if isinstance(held, np.ndarray) else await self._wait(held, began + self._deadline_s)
            except MediaError as error:
                raise Refused(Failed(400, str(error), "invalid_image", f"input.{place}")) from None
            if job.key[0] != _TEXT:
                count, seconds = self._seen[cached]
                self._seen[cached] = count + 1, seconds + time.monotonic() - began
            found.append((values, cached))
        return found

    async def _wait(self, done: Future[np.ndarray], until: float) -> np.ndarray:
        try:
            # Shielded: others may wait for the same picture.
            waiting = asyncio.shield(asyncio.wrap_future(done))
            return await asyncio.wait_for(waiting, max(0.0, until - time.monotonic()))
        except TimeoutError:
            text = f"no features within {self._deadline_s:g} seconds"
            raise Refused(Failed(504, text, "deadline_exceeded")) from None

    def _take(self, jobs: Sequence[_Job]) -> list[np.ndarray | Future[np.ndarray]]:
        """What is cached already, and what there is to wait for; each thing is computed once, however many ask."""
        found: list[np.ndarray | Future[np.ndarray]] = []
        with self._changed:
            if self._stopping or not self._thread.is_alive():
                raise Refused(Failed(503, "the encoder has stopped", "unavailable"))
            # Whoever asks for more than may wait can begin when nobody does.
            if self._queue and len(self._queue) + len(jobs) > self._max_queue:
                text = f"{len(self._queue)} pictures or texts are waiting already: try again soon"
                raise Refused(Failed(429, text, "queue_full"))
            for job in jobs:
                values = self._cache.get(job.key)
                if values is None and job.key not in self._pending:
                    self._pending[job.key] = job
                    self._queue.append(job)
                found.append(self._pending[job.key].done if values is None else values)
            self._changed.notify_all()
        return found

    # The encoder's thread

    def _work(self) -> None:
        while jobs := self._next():
            self._busy_since = time.monotonic()
            try:
                self._compute(jobs)
            except Exception:
                # One bad batch must not end the service: its requests fail, the log has the reason.
                _log.exception("encoding %d pictures or texts failed", len(jobs))
                text = "the encoding failed; the service's log says why"
                self._fail(jobs, Refused(Failed(500, text, "internal_error")))
            self._busy_since = None
        self._fail(list(self._pending.values()), Refused(Failed(503, "the service is stopping", "unavailable")))

    def _next(self) -> list[_Job]:
        """What to compute together; empty when the encoder is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            until = time.monotonic() + _WAIT_S
            self._changed.wait_for(
                lambda: len(self._queue) >= self._batch or self._stopping, timeout=until - time.monotonic()
            )
            if self._stopping:
                return []
            return [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]

    def _compute(self, jobs: Sequence[_Job]) -> None:
        texts = [job for job in jobs if job.key[0] == _TEXT]
        if texts:
            assert self._task is not None
            with self._reading:
                embedded = self._task.embed_texts([str(job.content) for job in texts])
            self._finish(texts, embedded)
        part: list[_Job] = []
        images: list[Image] = []
        for job in jobs:
            if not isinstance(job.content, bytes):
                continue
            try:
                image = decode_image(job.content)
            except MediaError as error:
                self._fail([job], error)
                continue
            # A batch of the largest pictures would need gigabytes.
            if images and sum(one.width * one.height for one in [*images, image]) > ImageLimits.max_pixels:
                self._see(part, images)
                part, images = [], []
            part.append(job)
            images.append(image)
        self._see(part, images)

    def _see(self, jobs: Sequence[_Job], images: Sequence[Image]) -> None:
        for what in {job.key[0] for job in jobs}:
            part = [job for job in jobs if job.key[0] == what]
            chosen = [image for job, image in zip(jobs, images, strict=True) if job.key[0] == what]
            if isinstance(what, int):
                # In 16 bits, as training keeps them
                self._finish(part, self._tower.features(chosen, what).half())
            else:
                assert self._task is not None
                self._finish(part, self._task.embed_images(chosen))

    def _finish(self, jobs: Sequence[_Job], found: Tensor) -> None:
        for job, values in zip(jobs, found.cpu().numpy(), strict=True):
            own = values.copy()  # a row would keep its whole batch in memory
            self._cache.put(job.key, own)
            with self._changed:
                self._pending.pop(job.key, None)
            job.done.set_result(own)

    def _fail(self, jobs: Sequence[_Job], error: Exception) -> None:
        for job in jobs:
            with self._changed:
                self._pending.pop(job.key, None)
            if not job.done.done():
                job.done.set_exception(error)


def _hash(content: bytes | str) -> str:
    return content_key(content.encode() if isinstance(content, str) else content)


def _length(tokens: Sequence[int]) -> int:
    """How many tokens a text has, without what fills it up to the tower's context at its end."""
    filled = len(tokens)
    while filled > 1 and tokens[filled - 1] == tokens[filled - 2]:
        filled -= 1
    return filled if filled == len(tokens) else filled - 1
