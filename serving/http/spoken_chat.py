"""Spoken answers of /v1/chat/completions: `modalities: ["text", "audio"]`, in OpenAI's shapes."""

import asyncio
import base64
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np

from kauli.models.media.encode import Encoder, encoded
from kauli.models.requests import SpeechRequest
from kauli.serving.backends import Backends
from kauli.serving.dialogue import Asked, Dialogue, aloud
from kauli.serving.events import Piece, Refused
from kauli.serving.http.answers import Pieces, error_body, sse
from kauli.serving.http.schemas import SpokenOptions
from kauli.serving.routing import Route
from kauli.serving.speech import provenance, spoken_by, unknown_voice

_DONE = sse("[DONE]")
_KEPT_S = 3600  # what `expires_at` says; nothing is stored


class SpokenChat:
    """The voice of one answer."""

    def __init__(self, backends: Backends, route: Route, options: SpokenOptions) -> None:
        route = spoken_by(route, options.voice_id)
        self._worker, self._adapter = backends.of(route), route.adapter
        self._request = SpeechRequest("", route.language, options.voice_id, options.speed)
        self._form = "pcm" if options.format == "pcm16" else options.format
        self._told = Dialogue(Asked(route.language))
        self._head = {"id": f"audio_{uuid.uuid4().hex}", "expires_at": int(time.time()) + _KEPT_S}

    @classmethod
    async def of(cls, backends: Backends, language: str | None, options: SpokenOptions) -> "SpokenChat":
        """Raises Refused where no voice is served, or there is none of that name."""
        route = await backends.route("speak", "speak", language, allow_base=True)
        known = [one.id for one in await backends.of(route).voices()]
        if options.voice_id is not None and options.voice_id not in known:
            raise Refused(unknown_voice(options.voice_id, known))
        return cls(backends, route, options)

    async def whole(self, answer: dict[str, Any]) -> dict[str, Any]:
        """A chat completion with its message spoken. Raises Refused."""
        message = answer["choices"][0]["message"]

        async def text() -> AsyncGenerator[str]:
            yield message["content"]

        async with aclosing(aloud(text(), self._worker, self._request, self._told, self._adapter)) as parts:
            found = [part async for part in parts if not isinstance(part, str)]
        samples = np.concatenate([np.zeros(0, np.float32), *found])
        content = await asyncio.to_thread(encoded, samples, self._form, self._comment())
        data = {"data": base64.b64encode(content).decode(), "transcript": message["content"]}
        message["audio"] = self._head | data
        return answer

    def listening(self, pieces: Pieces, heard: asyncio.Queue[str | None]) -> Pieces:
        """The pieces of an answer, which are heard as well."""

        async def both() -> Pieces:
            try:
                async with aclosing(pieces):
                    async for number, event in pieces:
                        if isinstance(event, Piece) and event.text:
                            heard.put_nowait(event.text)
                        yield number, event
            finally:
                heard.put_nowait(None)

        return both()

    async def streamed(
        self, written: AsyncGenerator[bytes], heard: asyncio.Queue[str | None], head: dict[str, Any]
    ) -> AsyncGenerator[bytes]:
        """Server-sent events of an answer with its sentences as they are spoken; `head` begins each chunk."""
        ready: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def write() -> None:
            async with aclosing(written):
                async for data in written:
                    ready.put_nowait(data.removesuffix(_DONE))

        async def speak() -> None:
            async def text() -> AsyncGenerator[str]:
                while (piece := await heard.get()) is not None:
                    yield piece

            encoder: Encoder | None = None
            try:
                async with aclosing(aloud(text(), self._worker, self._request, self._told, self._adapter)) as parts:
                    async for part in parts:
                        if not isinstance(part, str):
                            encoder = encoder or Encoder(self._form, self._comment())
                            ready.put_nowait(self._chunk(await asyncio.to_thread(encoder.write, part), head))
            except Refused as refusal:
                ready.put_nowait(sse(error_body(refusal.failed)))
            if encoder is not None:
                ready.put_nowait(self._chunk(encoder.close(), head))

        async def work() -> None:
            try:
                await asyncio.gather(write(), speak())
            finally:
                ready.put_nowait(None)

        task = asyncio.create_task(work())
        try:
            while (data := await ready.get()) is not None:
                if data:
                    yield data
            await task
            yield _DONE
        finally:
            task.cancel()

    def _chunk(self, data: bytes, head: dict[str, Any]) -> bytes:
        if not data:
            return b""
        audio = self._head | {"data": base64.b64encode(data).decode()}
        choice = {"index": 0, "delta": {"audio": audio}, "finish_reason": None}
        return sse({**head, "object": "chat.completion.chunk", "choices": [choice], "usage": None})

    def _comment(self) -> str:
        return provenance(self._told.voice, self._request.language or "und")
