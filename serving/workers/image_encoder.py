"""The worker for images: encoded for connectors, and embedded with texts in one space.

Requests that arrive at the same time are computed together; results are kept by the hash of the content, for chat,
embeddings and classification alike.
"""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, is_aligned
from kauli.models.engine.precision import place
from kauli.models.errors import KauliError, MediaError
from kauli.models.languages import nfc
from kauli.models.media.decode import ImageLimits, content_key, decode_image
from kauli.models.vision.align import AlignTask
from kauli.models.vision.clip import ClipModel
from kauli.models.vision.heads import Head
from kauli.models.vision.image_tower import ImageTower
from kauli.serving.events import EncodedMedia, Failed, MediaForm, Ranked, Refused, Vectors, not_served
from kauli.serving.routing import public_name
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.worker import Encoding, EncodingQueue, Worker, refusable, unloadable, wrong_encoder

_WAIT_S = 0.003  # how long an image waits for others to be computed with
_MOST_HEADS = 64
_IMAGE, _TEXT = "image", "text"  # embeddings; features have their grid in this place of the key


class ImageEncoder(Worker):
    """The tower of a base and, where its projections are trained, its shared space. No Ray in here.

    Its methods are called from any event loop. The base is one for the task `align`, on the GPU where there is one;
    without `answers` its image tower alone is kept.
    """

    def __init__(self, args: ServeArgs, base: Base, answers: bool) -> None:
        super().__init__("image encoder", args)
        self._base, self._registry, self._batch = base, Registry(args.storage), args.image.batch
        device, _ = place()
        self._clip = ClipModel(Path(base.folder))
        self._tower = ImageTower(self._clip, public_name(base), str(device))
        self._task = AlignTask.of(base, self._clip, device) if answers else None
        self._aligned = answers and is_aligned(base)
        if not self._aligned and hasattr(self._clip.model, "text"):
            del self._clip.model.text  # nearly all of the weights
        self._encodings = EncodingQueue(
            self, self._together, self._compute, "images or texts",
            cache_bytes=args.image.cache_bytes, max_queue=args.max_queue,
        )  # fmt: skip
        self._heads: OrderedDict[str, Head] = OrderedDict()
        self._loading = threading.Lock()
        self._reading = threading.Lock()  # a fast tokenizer can't be used by two threads at once
        self._thread.start()

    @refusable
    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia:
        """An image as a connector takes it; refused where that was trained with another encoder."""
        if form.tower != self._tower.sha256:
            raise Refused(wrong_encoder("image", form, f"{self._tower.name} ({self._tower.sha256[:12]})"))
        [(values, cached)] = await self._all([(form.grid, content)])
        return EncodedMedia(values.copy(), cached)  # torch warns of arrays that are read-only

    @refusable
    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors:
        """Texts, and images as their encoded bytes, in the shared space."""
        return await self._vectors(inputs)

    @refusable
    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked]:
        """The classes of each input by the head of an adapter (`name@version`)."""
        head = await asyncio.to_thread(self._head, adapter)
        return await self._ranked(head, await self._vectors(inputs, head=True))

    @refusable
    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked]:
        """The similarity of each input to the texts of `classes`, without any training."""
        vectors = await self._vectors([*inputs, *classes])
        assert self._task is not None
        text = torch.from_numpy(vectors.values[len(inputs) :])
        none = torch.zeros(0, text.shape[1]), torch.zeros(0, dtype=torch.int64)
        head = Head.fit("zero_shot", *none, list(classes), text, scale=float(self._task.logit_scale))
        return await self._ranked(head, Vectors(vectors.values[: len(inputs)], vectors.tokens))

    async def counts(self) -> dict[str, float]:
        """Of the features and images: see `EncodingQueue.counts`."""
        return self._encodings.counts()

    async def adapters(self) -> list[dict[str, Any]]:
        return [{"adapter": spec, "in_use": 0} for spec in list(self._heads)]

    @refusable
    async def load(self, adapter: str) -> None:
        await asyncio.to_thread(self._head, adapter)

    async def unload(self, adapter: str) -> bool:
        return self._heads.pop(adapter, None) is not None

    # Heads

    def _head(self, spec: str) -> Head:
        if self._task is None:
            raise Refused(not_served("image"))
        with self._loading:
            head = self._heads.pop(spec, None) or self._read_head(spec, self._task.dim)
            self._heads[spec] = head  # the most recently used is last
            while len(self._heads) > _MOST_HEADS:
                self._heads.popitem(last=False)
        return head

    def _read_head(self, spec: str, dim: int) -> Head:
        try:
            folder = self._registry.fetch(spec)
            check_base(self._registry.card(spec), self._base)
            head = Head.load(folder)
            if head.width != dim:
                raise KauliError(
                    f"its head takes vectors of {head.width} numbers, those of {self._base.name} have {dim}."
                )
        except KauliError as error:
            raise Refused(unloadable(spec, f": {error}")) from None
        return head

    async def _ranked(self, head: Head, vectors: Vectors) -> list[Ranked]:
        found = (await asyncio.to_thread(head.probabilities, torch.from_numpy(vectors.values))).tolist()
        return [sorted(zip(head.classes, row, strict=True), key=lambda pair: pair[1], reverse=True) for row in found]

    # Requests

    async def _vectors(self, inputs: Sequence[str | bytes], head: bool = False) -> Vectors:
        if self._task is None:
            raise Refused(not_served("image"))
        if not self._aligned and (not head or any(isinstance(one, str) for one in inputs)):
            text = (
                f"'{public_name(self._base)}' has no trained space of images and texts: it only "
                "classifies images, by adapters with a head. Run `kauli fetch kauli-clip` and serve it as image.base"
            )
            raise Refused(Failed(400, text, "invalid_value", "input" if head else "model"))
        wanted = [(_TEXT, nfc(one)) if isinstance(one, str) else (_IMAGE, one) for one in inputs]
        texts = {place: nfc(one) for place, one in enumerate(inputs) if isinstance(one, str)}
        counts = await asyncio.to_thread(self._tokens, texts)
        return Vectors(np.stack([values for values, _ in await self._all(wanted)]), *counts)

    def _tokens(self, texts: Mapping[int, str]) -> tuple[int, tuple[int, ...]]:
        with self._reading:
            tokens = {text: self._clip.tokens([text])[0].tolist() for text in texts.values()}
            if nothing := [text for text, found in tokens.items() if not found]:
                raise Refused(Failed(400, f"the text {nothing[0]!r} has nothing to embed", "invalid_value", "input"))
            count = sum(_length(tokens[text]) for text in texts.values())
            return count, tuple(place for place, text in texts.items() if self._clip.truncates(text))

    async def _all(self, wanted: Sequence[tuple[int | str, bytes | str]]) -> list[tuple[np.ndarray, bool]]:
        """Each one's array, and whether it was cached. Raises Refused."""
        began = time.monotonic()
        keys = await asyncio.to_thread(lambda: [(what, _hash(content)) for what, content in wanted])
        jobs = [Encoding(key, content) for key, (_, content) in zip(keys, wanted, strict=True)]
        out = []
        for number, (job, found) in enumerate(zip(jobs, self._encodings.take(jobs), strict=True)):
            try:
                values, cached = await self._encodings.wait(found, began + self._deadline_s)
            except MediaError as error:
                raise Refused(Failed(400, str(error), "invalid_image", f"input.{number}")) from None
            if job.key[0] != _TEXT:
                self._encodings.count(cached, began)
            out.append((values, cached))
        return out

    # In the worker's thread

    def _together(self, queue: deque[Encoding]) -> list[Encoding]:
        """The next batch; waits a moment for a full one."""
        self._changed.wait_for(lambda: len(queue) >= self._batch or self._stopping, timeout=_WAIT_S)
        return [] if self._stopping else [queue.popleft() for _ in range(min(self._batch, len(queue)))]

    def _compute(self, jobs: Sequence[Encoding]) -> None:
        texts = [job for job in jobs if job.key[0] == _TEXT]
        if texts:
            assert self._task is not None
            with self._reading:
                embedded = self._task.embed_texts([job.content for job in texts])
            self._encodings.finish(texts, (row.copy() for row in embedded.cpu().numpy()))
        part: list[Encoding] = []
        images: list[Image] = []
        for job in jobs:
            if job.key[0] == _TEXT:
                continue
            try:
                image = decode_image(job.content)
            except MediaError as error:
                self._encodings.fail([job], error)
                continue
            # A batch of the largest images would need gigabytes.
            if images and sum(one.width * one.height for one in [*images, image]) > ImageLimits.max_pixels:
                self._encode(part, images)
                part, images = [], []
            part.append(job)
            images.append(image)
        self._encode(part, images)

    def _encode(self, jobs: Sequence[Encoding], images: Sequence[Image]) -> None:
        for what in {job.key[0] for job in jobs}:
            part = [job for job in jobs if job.key[0] == what]
            chosen = [image for job, image in zip(jobs, images, strict=True) if job.key[0] == what]
            if isinstance(what, int):
                found = self._tower.features(chosen, what).half()  # in 16 bits, as in training
            else:
                assert self._task is not None
                found = self._task.embed_images(chosen)
            # Copied: a row would keep its whole batch in memory
            self._encodings.finish(part, (row.copy() for row in found.cpu().numpy()))


def _hash(content: bytes | str) -> str:
    return content_key(content.encode() if isinstance(content, str) else content)


def _length(tokens: Sequence[int]) -> int:
    """How many tokens a text has, without the padding at its end."""
    filled = len(tokens)
    while filled > 1 and tokens[filled - 1] == tokens[filled - 2]:
        filled -= 1
    return filled if filled == len(tokens) else filled - 1
