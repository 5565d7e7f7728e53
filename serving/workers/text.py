"""The worker for text: conversations and raw prompts, with the media that an adapter's connector takes."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from jinja2 import TemplateError

from kauli.models.bases.find import Base
from kauli.models.errors import KauliError, UsageError
from kauli.models.requests import TextRequest
from kauli.models.text.connector import Connector
from kauli.serving.events import Failed, MediaForm, Refused
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.generator import Generator
from kauli.serving.workers.worker import load_task, refusable, unloadable


class TextGenerator(Generator[TextRequest]):
    """Answers with text: a `TextTask` behind the queue."""

    probe = TextRequest.of_prompt("Hi", max_tokens=1)

    @refusable
    async def media_forms(self, adapter: str) -> dict[str, MediaForm]:
        """What the adapter takes, by kind of media ("image", "audio"); empty where it takes none."""
        try:
            reading = asyncio.to_thread(self._media_forms, adapter)
            return await self._before(time.monotonic() + self._deadline_s, reading)
        except KauliError as error:
            raise Refused(unloadable(adapter, f": {error}")) from None

    @refusable
    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text."""
        task: Any = self._task
        return await asyncio.to_thread(lambda: [len(task.prompts.text_tokens(text)) for text in texts])

    @refusable
    async def costs(self, prompt: str, texts: Sequence[str], adapter: str | None) -> list[tuple[float, int]]:
        """What each text costs as the answer to a message, in bits, and its UTF-8 bytes.

        It is computed between two passes of the engine: a few texts at a time.
        """
        until = time.monotonic() + self._deadline_s
        if adapter:
            await self._take(adapter, until)
        found: Future[list[tuple[float, int]]] = Future()
        task: Any = self._task
        rows = [{"prompt": prompt, "text": text} for text in texts]

        def compute() -> None:
            try:
                found.set_result(task.bits(rows, adapter))
            except Exception as error:
                found.set_exception(error)

        try:
            self._post(compute)
            return await self._before(until, asyncio.wrap_future(found))
        finally:
            if adapter:
                self._release(adapter)

    def _media_forms(self, adapter: str) -> dict[str, MediaForm]:
        connector = Connector.load(self._registry.fetch(adapter))
        parts = connector.settings if connector else {}
        return {kind: MediaForm(part.encoder, part.sha256, part.grid, part.stack) for kind, part in parts.items()}

    def _tokens(self, request: TextRequest) -> list[int]:
        try:
            return self._task.prompt_tokens(request)
        except UsageError as error:  # such as a token that the model does not have
            text = str(error)
        except TemplateError as error:  # such as Gemma's, which wants users and assistants to take turns
            text = f"the chat template of {self._task.base.name} refuses these messages: {error}"
        raise Refused(Failed(400, text, "invalid_value", _param(request)))

    def _limited(self, request: TextRequest, tokens: list[int]) -> TextRequest:
        room = self._task.window - len(tokens)
        if room < (request.max_tokens or 1):
            asked = f" and {request.max_tokens} new ones" if request.max_tokens else ""
            text = f"the prompt has {len(tokens)} tokens{asked}; the context holds {self._task.window}"
            raise Refused(Failed(400, text, "context_length_exceeded", _param(request)))
        return request


def _param(request: TextRequest) -> str:
    return "prompt" if request.messages is None else "messages"


def build(args: ServeArgs, base: Base, answers: bool) -> TextGenerator:
    """The worker on a base for text."""
    return TextGenerator(load_task("text", args, base, slots=args.text.batch, window=args.max_context), args)
