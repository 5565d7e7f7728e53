"""The endpoint /v1/audio/transcriptions: a form with an audio file in, its transcript out, in OpenAI's shapes."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field, ValidationError, field_validator, model_validator
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kauli.models.documents.tiers import elan_of, textgrid_of
from kauli.models.errors import MediaError
from kauli.models.media.decode import AudioLimits, DecodedAudio, decode_audio
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.chunking import as_text
from kauli.models.speech.guards import Guards
from kauli.models.speech.hot_words import check_hot_words, hot_words_of
from kauli.models.speech.subtitles import as_srt, as_vtt, cues
from kauli.serving.backends import Backends
from kauli.serving.events import Refused
from kauli.serving.http.answers import error_body, route_headers, sse
from kauli.serving.http.bodies import ApiError, Body, invalid_body
from kauli.serving.routing import Route
from kauli.serving.transcript import Transcript, usage, verbose_json

_FORM = "multipart/form-data"
_MOST_FIELDS, _MOST_FIELD_BYTES = 32, 65_536
_LISTS = {"timestamp_granularities[]": "timestamp_granularities", "include[]": "include"}
"""Fields that may be given several times. Clients write them with and without the brackets."""


class TranscriptionForm(Body):
    """The fields of POST /v1/audio/transcriptions beside the file."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    language: Annotated[str, Field(max_length=64)] | None = None
    """A BCP-47 tag; with "transcribe" as the model it chooses the adapter. None, auto: the adapter's, or detected."""
    prompt: Annotated[str, Field(max_length=8192)] | None = None
    """The text before the audio, or words that may occur in it."""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt", "eaf", "textgrid"] = "json"
    """eaf, textgrid: the segments with their times, for ELAN and Praat."""
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    stream: bool = False
    timestamp_granularities: tuple[str, ...] = ()
    """Of verbose_json: segment (a part that was transcribed in one window), word, or both; none: segment."""
    chunking_strategy: Literal["auto"] | None = None
    """Changes nothing: long audio is always cut at pauses."""
    include: tuple[Literal["logprobs"], ...] = ()
    """logprobs: those of the tokens, with response_format json."""
    user: str | None = None
    """Changes nothing."""
    # Ours
    hotwords: Annotated[str, Field(max_length=4096)] | None = None
    """Words that are likely in the audio, such as names, with commas between them."""
    language_model: bool = True
    """Whether the adapter's language model is used, where it has one."""
    no_speech_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    """For this and the next two see `Guards`; None: the setting of the service."""
    logprob_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    compression_ratio_threshold: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    allow_base: bool = False
    """Let the bare base transcribe when no adapter serves the language."""

    @field_validator("language")
    @classmethod
    def _detected(cls, value: str | None) -> str | None:
        return None if value == "auto" else value

    @field_validator("timestamp_granularities")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one not in ("segment", "word"):
                raise ValueError(f"timestamps of '{one}' are not available: give word or segment, or leave it out")
        return value

    @field_validator("hotwords")
    @classmethod
    def _few(cls, value: str | None) -> str | None:
        check_hot_words(hot_words_of(value or ""))
        return value

    @model_validator(mode="after")
    def _together(self) -> "TranscriptionForm":
        if self.hotwords and self.temperature:
            raise ValueError("hotwords are searched for without a temperature: set temperature to 0, or leave them out")
        if self.stream and self.response_format != "json":
            raise ValueError(f"a stream is for response_format json, not {self.response_format}")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities are for response_format verbose_json")
        return self

    @property
    def words(self) -> bool:
        """Whether the answer needs the times of words, which are computed only then."""
        return self.response_format in ("srt", "vtt") or "word" in self.timestamp_granularities


def add_transcriptions(app: FastAPI, backends: Backends) -> None:
    """Add the endpoint; it answers 404 where nothing transcribes."""
    args = backends.args
    limits = AudioLimits(max_seconds=args.max_audio_seconds)
    # Audio that is held decoded; other uploads wait on the disk.
    in_progress = asyncio.Semaphore(args.max_queue)

    @app.post("/v1/audio/transcriptions", response_model=None, openapi_extra={"requestBody": _body()})
    async def transcriptions(request: Request) -> Response:
        """The transcript of an audio file (a form with the file), as JSON, text or subtitles, whole or streamed."""
        values, upload = await read_form(request)
        try:
            try:
                form = TranscriptionForm.model_validate(values)
            except ValidationError as error:
                raise invalid_body(error.errors(), ["file", *TranscriptionForm.model_fields]) from None
            route = await backends.route("transcribe", form.model, form.language, form.allow_base)
            asked = TranscriptionRequest(
                None, route.language, form.prompt, temperature=form.temperature, seed=form.seed, words=form.words,
                language_model=form.language_model, hot_words=hot_words_of(form.hotwords or ""),
            )  # fmt: skip
            own = form.model_dump(include=set(Guards.model_fields), exclude_none=True)
            guards = args.audio.guards.model_copy(update=own)
            certified = await asyncio.to_thread(backends.catalogue.certificate, route)
            transcript = Transcript(
                backends.of(route), asked, route.adapter, args.deadline_s, guards=guards, certified=certified
            )
            pieces = _held(in_progress, upload, transcript, limits, form.stream)
            if form.stream:
                first = await anext(pieces)  # decides the status, which a stream has to send before its text
                headers = _headers(route, transcript) | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
                events = _streamed(first, pieces, transcript, bool(form.include))
                return StreamingResponse(events, media_type="text/event-stream", headers=headers)
            async with aclosing(pieces):
                async for _ in pieces:
                    pass
            recording = Path(upload.filename or "recording").name
            return await asyncio.to_thread(_answer, transcript, form, _headers(route, transcript), recording)
        finally:
            await upload.close()


async def read_form(request: Request) -> tuple[dict[str, Any], UploadFile]:
    """A form's fields and its file; raises ApiError for any other body."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _FORM:
        text = f"the body is '{kind}': send {_FORM} with the fields file and model, as curl -F does"
        raise ApiError(415, text, "unsupported_media_type")
    values: dict[str, Any] = {}
    upload: UploadFile | None = None
    try:
        found = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES)
    except ClientDisconnect:
        raise ApiError(400, "the body ended early", "body_incomplete") from None
    except HTTPException as error:
        if "Too many files" in error.detail:
            text = "one file is transcribed, in the field file: send others in requests of their own"
            raise ApiError(400, text, "invalid_value", "file") from None
        if "maximum size" not in error.detail:
            raise
        text = (
            f"a part without a file name has more than {_MOST_FIELD_BYTES:,} bytes: give the part file one, as curl -F "
            "file=@clip.wav does (not file=<clip.wav)"
        )
        raise ApiError(400, text, "invalid_value", "file") from None
    for name, value in found.multi_items():
        name = {ours: field for field, ours in _LISTS.items()}.get(name, name)
        if name == "file" and isinstance(value, UploadFile):
            upload = value
        elif name == "file" or isinstance(value, UploadFile):
            where = "must be a file" if name == "file" else "must not be a file: send that in the field file"
            raise ApiError(400, f"the field {name} {where} (curl -F file=@clip.wav)", "invalid_value", name)
        elif name in _LISTS:
            values.setdefault(_LISTS[name], []).append(value)
        elif name in values:
            raise ApiError(400, f"the field {name} is given twice", "invalid_value", name)
        elif value:  # an empty field counts as left out
            values[name] = value
    if upload is None:
        text = "the field file is missing: send the audio file in it (curl -F file=@clip.wav)"
        raise ApiError(400, text, "invalid_value", "file")
    return values, upload


async def _held(
    in_progress: asyncio.Semaphore, upload: UploadFile, transcript: Transcript, limits: AudioLimits, stream: bool
) -> AsyncGenerator[str]:
    """The transcript's pieces; the decoded audio is held until they end."""
    if in_progress.locked():
        raise ApiError(429, "Too many transcriptions in progress; retry later", "queue_full")
    async with in_progress:
        await transcript.cut(await asyncio.to_thread(decoded, await upload.read(), limits))
        async with aclosing(transcript.pieces(stream)) as pieces:
            async for piece in pieces:
                yield piece


def decoded(content: bytes, limits: AudioLimits) -> DecodedAudio:
    """An uploaded file as samples; raises ApiError for what can't be read."""
    try:
        return decode_audio(content, limits)
    except MediaError as error:
        large = len(content) > limits.max_bytes
        status, code = (413, "body_too_large") if large else (400, "invalid_audio")
        raise ApiError(status, str(error), code, "file") from None


async def _streamed(
    first: str, pieces: AsyncGenerator[str], transcript: Transcript, logprobs: bool
) -> AsyncGenerator[bytes]:
    """Server-sent events, the last one [DONE]; or an error event as the last one."""
    async with aclosing(pieces):
        if first:
            yield sse({"type": "transcript.text.delta", "delta": first})
        try:
            async for piece in pieces:
                if piece:
                    yield sse({"type": "transcript.text.delta", "delta": piece})
        except Refused as refusal:
            yield sse(error_body(refusal.failed))
            return
    done: dict[str, Any] = {"type": "transcript.text.done", "text": as_text(transcript.segments)}
    if transcript.language:
        done["languages"] = [{"code": transcript.language}]
    done |= {"warnings": list(transcript.warnings)} if transcript.warnings else {}
    done |= {"logprobs": _logprobs(transcript)} if logprobs else {}
    yield sse(done | {"usage": usage(transcript.clip.seconds)}) + sse("[DONE]")


def _headers(route: Route, transcript: Transcript) -> dict[str, str]:
    return route_headers(replace(route, language=transcript.language))


def _answer(transcript: Transcript, form: TranscriptionForm, headers: dict[str, str], recording: str) -> Response:
    """The transcript as the form asks for it; `recording` is the name of its file."""
    segments = transcript.segments
    match form.response_format:
        case "text":
            return PlainTextResponse(as_text(segments) + "\n", headers=headers)
        case "srt":
            return PlainTextResponse(as_srt(cues(segments)), headers=headers, media_type="application/x-subrip")
        case "vtt":
            return PlainTextResponse(as_vtt(cues(segments)), headers=headers, media_type="text/vtt")
        case "eaf" | "textgrid":
            spans = [(one.start, one.end, one.text.strip()) for one in segments]
            if form.response_format == "eaf":
                return Response(elan_of(spans, recording), headers=headers, media_type="application/xml")
            grid = textgrid_of(spans, transcript.clip.seconds)
            return Response(grid, headers=headers, media_type="text/plain; charset=utf-8")
    seconds, warnings = transcript.clip.seconds, transcript.warnings
    if form.response_format == "verbose_json":
        asked = form.timestamp_granularities or ("segment",)
        words = "word" in asked
        content = verbose_json(
            segments, transcript.language, seconds, warnings, words=words, temperature=form.temperature
        )
        if "segment" not in asked:
            del content["segments"]
    else:
        content = {"text": as_text(segments), "usage": usage(seconds)}
        content |= {"warnings": list(warnings)} if warnings else {}
        content |= {"logprobs": _logprobs(transcript)} if form.include else {}
    return JSONResponse(content, headers=headers)


def _logprobs(transcript: Transcript) -> list[dict[str, Any]]:
    """Of the tokens of the text, as OpenAI has them; those in the overlap of two spans stand twice."""
    return [
        {"token": one.bytes.decode(errors="replace"), "logprob": one.logprob, "bytes": list(one.bytes)}
        for one in transcript.tokens
    ]


def _body() -> dict[str, Any]:
    """The form for the API's schema: the model's fields with the file."""
    schema = TranscriptionForm.model_json_schema()
    fields = schema["properties"]
    fields = {"file": {"type": "string", "format": "binary"}, **fields}
    fields = {next((field for field, ours in _LISTS.items() if ours == name), name): fields[name] for name in fields}
    schema |= {"properties": fields, "required": ["file", *schema["required"]]}
    return {"required": True, "content": {_FORM: {"schema": schema}}}
