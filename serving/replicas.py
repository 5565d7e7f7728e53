"""What runs in the process of each deployment: a generator or an encoder, loaded when the process starts.

torch is imported there and then: whoever builds the application needs none.
"""

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from kauli.models.bases import find_base
from kauli.models.registry import Registry
from kauli.models.requests import TextRequest
from kauli.serving.events import Event, Failed, Features, PictureForm, Ranked, Vectors
from kauli.serving.settings import ServeArgs


class TextReplica:
    """A `TextGenerator` in a process of its own."""

    def __init__(self, args: ServeArgs, base: str) -> None:
        import torch

        from kauli.models.text import TextTask
        from kauli.serving.generator import TextGenerator

        # Ray sets one OpenMP thread for each logical CPU that it sets aside.
        torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
        found = find_base(base, allow_noncommercial=args.allow_noncommercial)
        task = TextTask.load(found, slots=args.max_batch, window=args.max_context)
        self._generator = TextGenerator(
            task, Registry(args.storage), max_queue=args.max_queue, max_adapters=args.max_adapters,
            deadline_s=args.deadline_s,
        )  # fmt: skip

    async def stream(self, request: TextRequest, adapter: str | None, whole: bool) -> AsyncGenerator[Event]:
        """The events of one request."""
        # Closed here: a client that has gone must free its row now, not when the garbage is collected.
        async with aclosing(self._generator.stream(request, adapter, whole)) as events:
            async for event in events:
                yield event

    async def picture_form(self, adapter: str) -> PictureForm | Failed | None:
        """What the adapter takes for a picture."""
        return await self._generator.picture_form(adapter)

    async def adapters(self) -> list[dict[str, Any]]:
        """What is loaded."""
        return await self._generator.adapters()

    async def load(self, adapter: str) -> Failed | None:
        """Load an adapter; None, or why it can't be."""
        return await self._generator.load(adapter)

    async def unload(self, adapter: str) -> bool:
        """Forget an adapter; whether it was loaded."""
        return await self._generator.unload(adapter)

    async def check(self) -> str | None:
        """None when the engine answers, else what is wrong."""
        return await self._generator.check()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises."""
        if not self._generator.alive():
            raise RuntimeError("the generator's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "_generator"):
            self._generator.close()


class ImageReplica:
    """An `ImageEncoder` in a process of its own."""

    def __init__(self, args: ServeArgs, base: str, aligned: bool) -> None:
        import torch

        from kauli.serving.image_encoder import ImageEncoder

        torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
        found = find_base(base, allow_noncommercial=args.allow_noncommercial, task="align")
        self._encoder = ImageEncoder.of(
            found, aligned, Registry(args.storage), batch=args.image_batch, cache_bytes=args.image_cache_bytes,
            max_queue=args.max_queue, deadline_s=args.deadline_s,
        )  # fmt: skip

    async def features(self, content: bytes, form: PictureForm) -> Features | Failed:
        """A picture as the connector of an adapter wants it."""
        return await self._encoder.features(content, form)

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors | Failed:
        """Texts and pictures in the shared space."""
        return await self._encoder.embed(inputs)

    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """What a head makes of each input."""
        return await self._encoder.classify(adapter, inputs)

    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """How near each input is to each class."""
        return await self._encoder.classify_as(classes, inputs)

    async def counts(self) -> dict[str, float]:
        """Hits and misses."""
        return await self._encoder.counts()

    async def adapters(self) -> list[dict[str, Any]]:
        """The heads that are loaded."""
        return await self._encoder.adapters()

    async def load(self, adapter: str) -> Failed | None:
        """Load a head; None, or why it can't be."""
        return await self._encoder.load(adapter)

    async def unload(self, adapter: str) -> bool:
        """Forget a head; whether it was loaded."""
        return await self._encoder.unload(adapter)

    async def check(self) -> str | None:
        """None when the encoder works, else what is wrong."""
        return await self._encoder.check()

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises."""
        if not self._encoder.alive():
            raise RuntimeError("the encoder's thread has ended")

    def __del__(self) -> None:
        if hasattr(self, "_encoder"):
            self._encoder.close()
