"""The endpoints /v1/audio/speech and /v1/audio/voices: text spoken, whole or sentence by sentence."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field

from kauli.models.media.encode import MEDIA_TYPES, Encoder, check_format, encoded
from kauli.models.requests import SpeechRequest
from kauli.serving.backends import Backends
from kauli.serving.events import Refused
from kauli.serving.http.answers import error_body, route_headers, sse
from kauli.serving.http.bodies import ApiError, JsonBody, ignored_header
from kauli.serving.http.dialogue import add_dialogue
from kauli.serving.http.schemas import Speed, VoiceId, VoiceName
from kauli.serving.speech import (
    TIMES,
    Samples,
    Speech,
    adapter_voices,
    named_voice,
    provenance,
    spoken_by,
    spoken_language,
)

_MOST_WORDS = 1000  # of a request's lexicon
_JSON_AUDIO = "mp3"


class SpeechBody(JsonBody):
    """The body of POST /v1/audio/speech."""

    no_effect = ("user", "instructions")

    model: Annotated[str, Field(min_length=1, max_length=256)] = "speak"
    input: str
    """May hold `[word](/ipa/)` and `[pause:0.5s]`."""
    voice: VoiceName | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "json", "vtt", "srt", "textgrid"] = "mp3"
    """json: the audio as mp3 in base64, with the times of words; vtt, srt, textgrid: those times alone."""
    speed: Speed = 1.0
    stream_format: Literal["audio", "sse"] | None = None
    """audio: the file, sentence by sentence; sse: the same in events; None: the whole file with its length."""
    # Ours
    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; None: for longer texts the language is detected, else it is the voice's own."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    lexicon: Annotated[dict[str, str], Field(max_length=_MOST_WORDS)] = Field(default_factory=dict)
    """Words and their pronunciation in the IPA."""


def add_speech(app: FastAPI, backends: Backends) -> None:
    """Add the endpoints; they answer 404 where no voice is served."""
    add_dialogue(app, backends)

    @app.get("/v1/audio/voices")
    async def voices() -> dict[str, Any]:
        """The voices with their language, licence and consent: those of the base, then those of adapters."""
        route = await backends.route("speak", "speak")
        found = [(one, route.base) for one in await backends.of(route).voices()]
        found += adapter_voices(await asyncio.to_thread(backends.catalogue.adapters))
        return {"voices": [{"name": one.id, "model": model, **asdict(one)} for one, model in found]}

    @app.post("/v1/audio/speech", response_model=None)
    async def speech(body: SpeechBody) -> Response:
        """A text as speech, which is marked as generated: by a watermark, in the file and by a header."""
        most = backends.args.max_speech_characters
        if len(body.input) > most:
            text = f"input has {len(body.input)} characters; this service speaks {most} (setting max_speech_characters)"
            raise ApiError(400, text, "value_too_large", "input")
        if body.response_format in MEDIA_TYPES:
            check_format(body.response_format)
        elif body.stream_format:
            text = f"stream_format is for audio, not for response_format {body.response_format}"
            raise ApiError(400, text, "invalid_value", "stream_format")
        named = body.voice.id if isinstance(body.voice, VoiceId) else body.voice
        added = adapter_voices(await asyncio.to_thread(backends.catalogue.adapters))
        model, named = named_voice(body.model, named, [one.id.partition("@")[0] for one, _ in added])
        language = body.language
        if language is None and model == "speak":  # it chooses the adapter
            language = await asyncio.to_thread(spoken_language, body.input)
        route = spoken_by(await backends.route("speak", model, language, allow_base=True), named)
        request = SpeechRequest(
            body.input, route.language, named, body.speed, body.seed, tuple(body.lexicon.items())
        )  # fmt: skip
        said = Speech(backends.of(route), request, route.adapter)
        await said.begin()
        headers = route_headers(replace(route, language=said.language)) | ignored_header(body)
        headers |= {"X-Kauli-Voice": quote(said.voice.id)}
        headers |= {"X-Kauli-Unread": quote("".join(said.unread)[:200])} if said.unread else {}
        if body.stream_format:
            return await _streamed(said, body, headers)
        samples = await said.whole()
        if body.response_format in TIMES:
            times = said.times(body.response_format)
            return PlainTextResponse(times, headers=headers, media_type=TIMES[body.response_format])
        comment = provenance(said.voice.id, said.language)
        form = _JSON_AUDIO if body.response_format == "json" else body.response_format
        content = await asyncio.to_thread(encoded, samples, form, comment)
        if body.response_format == "json":
            return JSONResponse(_described(said, content), headers=headers)
        return Response(content, headers=headers, media_type=MEDIA_TYPES[form])


def _described(said: Speech, content: bytes) -> dict[str, Any]:
    return {
        "object": "speech", "audio": base64.b64encode(content).decode(), "format": _JSON_AUDIO,
        "voice": said.voice.id, "language": said.language, "seconds": round(said.seconds, 3), "words": said.words(),
        "unread": list(said.unread),
    }  # fmt: skip


async def _streamed(said: Speech, body: SpeechBody, headers: dict[str, str]) -> StreamingResponse:
    """The response of a stream, whose status the first sentence decides."""
    sentences = said.sentences()
    first = await anext(sentences)
    headers = headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    encoder = Encoder(body.response_format, provenance(said.voice.id, said.language))
    if body.stream_format == "sse":
        events = _events(first, sentences, encoder, said, len(body.input))
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    media_type = MEDIA_TYPES[body.response_format]
    return StreamingResponse(_audio(first, sentences, encoder), media_type=media_type, headers=headers)


async def _audio(first: Samples, sentences: AsyncGenerator[Samples], encoder: Encoder) -> AsyncGenerator[bytes]:
    """The parts of a file; a failure in the middle breaks the connection: a part must not look whole."""
    async with aclosing(sentences):
        yield await asyncio.to_thread(encoder.write, first)
        async for samples in sentences:
            yield await asyncio.to_thread(encoder.write, samples)
    yield encoder.close()


async def _events(
    first: Samples, sentences: AsyncGenerator[Samples], encoder: Encoder, said: Speech, characters: int
) -> AsyncGenerator[bytes]:
    """Server-sent events in OpenAI's shape; an error is the last one. Tokens are characters, and answers have none."""
    try:
        async with aclosing(_audio(first, sentences, encoder)) as parts:
            async for data in parts:
                if data:
                    yield sse({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
    except Refused as refusal:
        yield sse(error_body(refusal.failed))
        return
    usage = {"input_tokens": characters, "output_tokens": 0, "total_tokens": characters}
    yield sse({"type": "speech.audio.done", "usage": usage, "seconds": round(said.seconds, 3)})
