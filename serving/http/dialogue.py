"""The endpoint /v1/audio/dialogue: a recording in, its answer or its translation out as speech, in one request."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field, ValidationError, field_validator

from kauli.models.media.decode import AudioLimits
from kauli.models.media.encode import MEDIA_TYPES, Encoder, check_format, encoded
from kauli.serving.backends import Backends
from kauli.serving.dialogue import Asked, Dialogue
from kauli.serving.events import Refused
from kauli.serving.http.answers import error_body, sse
from kauli.serving.http.auth import tenant
from kauli.serving.http.bodies import ApiError, Body, invalid_body
from kauli.serving.http.transcriptions import decoded, read_form
from kauli.serving.speech import Samples, provenance

_FORM = "multipart/form-data"


class DialogueForm(Body):
    """The fields of POST /v1/audio/dialogue beside the file."""

    language: Annotated[str, Field(max_length=64)] | None = None
    """Of the recording, a BCP-47 tag; None: detected."""
    target: Annotated[str, Field(max_length=64)] | None = None
    """Translate into this language; None: answer in the recording's own."""
    model: Annotated[str, Field(min_length=1, max_length=256)] = "text"
    """Who answers or translates: a task or an adapter."""
    transcriber: Annotated[str, Field(min_length=1, max_length=256)] = "transcribe"
    voice: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    speed: Annotated[float, Field(ge=0.25, le=4)] = 1.0
    instructions: Annotated[str, Field(max_length=8192)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    memory: Annotated[str, Field(max_length=256)] | None = None
    """The name of one of the tenant's memories, for a translation."""
    response_format: str = "mp3"
    stream: bool = False

    @field_validator("response_format")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in MEDIA_TYPES:
            raise ValueError(f"'{value}' is no audio format: use {', '.join(MEDIA_TYPES)}")
        return value


def add_dialogue(app: FastAPI, backends: Backends) -> None:
    """Add the endpoint; it answers 404 where speech is not both transcribed and spoken."""
    args = backends.args
    limits = AudioLimits(max_seconds=args.max_audio_seconds)
    schema = DialogueForm.model_json_schema()
    schema["properties"] = {"file": {"type": "string", "format": "binary"}} | schema["properties"]
    body = {"required": True, "content": {_FORM: {"schema": schema | {"required": ["file"]}}}}

    @app.post("/v1/audio/dialogue", response_model=None, openapi_extra={"requestBody": body})
    async def dialogue(request: Request) -> Response:
        """A recording (a form with the file) answered or translated, with text and speech, whole or streamed."""
        values, upload = await read_form(request)
        try:
            form = DialogueForm.model_validate(values)
        except ValidationError as error:
            raise invalid_body(error.errors(), ["file", *DialogueForm.model_fields]) from None
        finally:
            content = await upload.read()
            await upload.close()
        check_format(form.response_format)
        if form.max_tokens is not None and form.max_tokens > args.max_tokens:
            text = f"max_tokens is {form.max_tokens}; this service allows {args.max_tokens} (setting max_tokens)"
            raise ApiError(400, text, "value_too_large", "max_tokens")
        asked = Asked(
            form.language, form.target, form.model, form.transcriber, form.voice, form.speed, form.instructions,
            form.max_tokens, (form.memory,) if form.memory else (), tenant(request.scope),
        )  # fmt: skip
        clip = await asyncio.to_thread(decoded, content, limits)
        told = Dialogue(asked)
        events = told.events(backends, clip)
        first = await anext(events)  # the transcript, which decides the status
        assert isinstance(first, str)
        headers = {"X-Kauli-Provenance": "ai-generated"}
        if form.stream:
            headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(
                _streamed(events, told, form.response_format), media_type="text/event-stream", headers=headers
            )
        async with aclosing(events):
            parts = [part async for part in events if not isinstance(part, str)]
        samples = np.concatenate([np.zeros(0, np.float32), *parts])
        comment = provenance(told.voice, told.spoken_language or "und")
        audio = await asyncio.to_thread(encoded, samples, form.response_format, comment)
        found = {"audio": base64.b64encode(audio).decode(), "format": form.response_format}
        return JSONResponse(_summary(told) | found, headers=headers)


async def _streamed(
    events: AsyncGenerator[str | Samples], told: Dialogue, form: str
) -> AsyncGenerator[bytes]:  # fmt: skip
    """Server-sent events: the transcript, text and audio as they come, and a summary; or an error as the last one."""
    yield sse({"type": "transcript.text.done", "text": told.transcript, "language": told.language})
    encoder: Encoder | None = None
    try:
        async with aclosing(events):
            async for part in events:
                if isinstance(part, str):
                    yield sse({"type": "response.output_text.delta", "delta": part})
                    continue
                if encoder is None:
                    encoder = Encoder(form, provenance(told.voice, told.spoken_language or "und"))
                data = await asyncio.to_thread(encoder.write, part)
                if data:
                    yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    except Refused as refusal:
        yield sse(error_body(refusal.failed))
        return
    if encoder is not None and (data := encoder.close()):
        yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    yield sse({"type": "response.completed", **_summary(told)}) + sse("[DONE]")


def _summary(told: Dialogue) -> dict[str, Any]:
    return {
        "object": "dialogue", "transcript": told.transcript, "language": told.language, "text": told.text,
        "spoken_language": told.spoken_language, "voice": told.voice, "seconds": round(told.seconds, 3),
        "unread": told.unread, "models": {name: route.adapter or route.base for name, route in told.routes.items()},
    }  # fmt: skip
