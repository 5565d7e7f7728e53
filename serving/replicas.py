"""What runs in the process of each deployment: a generator or an encoder, loaded when the process starts.

torch is imported there and then: whoever builds the application needs none.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.requests import TextRequest, TranscriptionRequest
from kauli.serving.events import EncodedMedia, Event, Failed, MediaForm, Ranked, Vectors
from kauli.serving.settings import ServeArgs

if TYPE_CHECKING:
    from kauli.serving.workers.image_encoder import ImageEncoder
    from kauli.serving.workers.text import TextGenerator
    from kauli.serving.workers.transcriber import Transcriber


class _Replica:
    """What all of them have: `_running`, whose thread does the work, and its adapters."""

    _running: Any = None

    async def adapters(self) -> list[dict[str, Any]]:
        """What is loaded."""
        found: list[dict[str, Any]] = await self._running.adapters()
        return found

    async def load(self, adapter: str) -> Failed | None:
        """Load an adapter; None, or why it can't be."""
        failed: Failed | None = await self._running.load(adapter)
        return failed

    async def unload(self, adapter: str) -> bool:
        """Forget an adapter; whether it was loaded."""
        return bool(await self._running.unload(adapter))

    async def check(self) -> str | None:
        """None when it works, else what is wrong."""
        wrong: str | None = await self._running.check()
        return wrong

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises."""
        if not self._running.alive():
            raise RuntimeError(f"the thread of {type(self).__name__} has ended")

    def __del__(self) -> None:
        if self._running is not None:
            self._running.close()


class TextReplica(_Replica):
    """A `TextGenerator` in a process of its own."""

    _running: "TextGenerator"

    def __init__(self, args: ServeArgs, base: str) -> None:
        from kauli.models.text.task import TextTask
        from kauli.serving.workers.text import TextGenerator

        _use_threads(args)
        found = find_base(base, allow_noncommercial=args.allow_noncommercial)
        task = TextTask.load(found, slots=args.max_batch, window=args.max_context)
        self._running = TextGenerator(
            task, Registry(args.storage), max_queue=args.max_queue, max_adapters=args.max_adapters,
            deadline_s=args.deadline_s,
        )  # fmt: skip

    async def stream(self, request: TextRequest, adapter: str | None, whole: bool) -> AsyncGenerator[Event]:
        """The events of one request."""
        # Closed here: a client that has gone must free its row now, not when the garbage is collected.
        async with aclosing(self._running.stream(request, adapter, whole)) as events:
            async for event in events:
                yield event

    async def media_forms(self, adapter: str) -> dict[str, MediaForm] | Failed:
        """What the adapter takes, by kind of media."""
        return await self._running.media_forms(adapter)


class AudioReplica(_Replica):
    """A `Transcriber` in a process of its own."""

    _running: "Transcriber"

    def __init__(self, args: ServeArgs, base: str) -> None:
        from kauli.models.speech.task import Recogniser
        from kauli.serving.workers.transcriber import Transcriber

        _use_threads(args)
        found = find_base(base, allow_noncommercial=args.allow_noncommercial, task="transcribe")
        self._running = Transcriber(
            Recogniser.load(found, slots=args.audio_batch), Registry(args.storage),
            cache_bytes=args.audio_cache_bytes, max_queue=args.max_queue, max_adapters=args.max_adapters,
            deadline_s=args.deadline_s,
        )  # fmt: skip

    async def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool) -> AsyncGenerator[Event]:
        """The events of one clip."""
        async with aclosing(self._running.stream(request, adapter, whole)) as events:
            async for event in events:
                yield event

    async def longest(self) -> float:
        """The seconds of sound that it hears at once."""
        return await self._running.longest()

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A recording as the connector of an adapter wants it."""
        return await self._running.features(content, form)

    async def counts(self) -> dict[str, float]:
        """Hits and misses."""
        return await self._running.counts()


class ImageReplica(_Replica):
    """An `ImageEncoder` in a process of its own."""

    _running: "ImageEncoder"

    def __init__(self, args: ServeArgs, base: str, aligned: bool) -> None:
        from kauli.serving.workers.image_encoder import ImageEncoder

        _use_threads(args)
        found = find_base(base, allow_noncommercial=args.allow_noncommercial, task="align")
        self._running = ImageEncoder.of(
            found, aligned, Registry(args.storage), batch=args.image_batch, cache_bytes=args.image_cache_bytes,
            max_queue=args.max_queue, deadline_s=args.deadline_s,
        )  # fmt: skip

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A picture as the connector of an adapter wants it."""
        return await self._running.features(content, form)

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors | Failed:
        """Texts and pictures in the shared space."""
        return await self._running.embed(inputs)

    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """What a head makes of each input."""
        return await self._running.classify(adapter, inputs)

    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """How near each input is to each class."""
        return await self._running.classify_as(classes, inputs)

    async def counts(self) -> dict[str, float]:
        """Hits and misses."""
        return await self._running.counts()


def _use_threads(args: ServeArgs) -> None:
    import torch

    # Ray sets one OpenMP thread for each logical CPU that it sets aside.
    torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
