"""The FastAPI application: OpenAI's paths over a catalogue of models and the generators of their bases."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from kauli.models.errors import KauliError, UsageError
from kauli.serving.events import AudioBackend, Backend, Event, Failed, ImageBackend, Started, TextBackend
from kauli.serving.http import pages
from kauli.serving.http.answers import Pieces, Shape, route_headers
from kauli.serving.http.auth import Access
from kauli.serving.http.embeddings import add_shared_space
from kauli.serving.http.media import Attachments
from kauli.serving.http.schemas import AdapterRequest, ApiError, ChatRequest, CompletionRequest, invalid_body
from kauli.serving.http.transcriptions import add_transcriptions
from kauli.serving.routing import Adapter, Catalogue, UnknownLanguage, UnknownModel
from kauli.serving.settings import ServeArgs

_log = logging.getLogger(__name__)


def create_app(
    backends: Mapping[str, TextBackend],
    catalogue: Catalogue,
    args: ServeArgs,
    image: ImageBackend | None = None,
    audio: AudioBackend | None = None,
) -> FastAPI:
    """The application.

    `backends` maps the name of each of the catalogue's bases to what generates with it; `image` sees, where the
    service takes pictures, and has the shared space where the catalogue has an aligned base; `audio` hears, where the
    service takes recordings, and transcribes where the catalogue has a base for speech.
    """
    # The stock /docs page loads its scripts from another site.
    app = FastAPI(title="Kauli", version=version("kauli"), docs_url=None, redoc_url=None)
    app.add_middleware(Access, args=args, hears=audio is not None)
    _add_error_handlers(app)
    _add_pages(app)
    everything: dict[str, Backend] = dict(backends)
    if image is not None:
        everything[catalogue.aligned or "encoder"] = image
    if audio is not None:
        everything[catalogue.speech or "speech"] = audio
    _add_adapters(app, everything, catalogue)
    add_shared_space(app, image, catalogue, args)
    add_transcriptions(app, audio, catalogue, args)
    attachments = Attachments(backends, image, audio, catalogue)
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Bases, and the adapters that they can serve."""
        return {"object": "list", "data": await asyncio.to_thread(_models, catalogue, started)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One base or adapter."""
        for entry in await asyncio.to_thread(_models, catalogue, started):
            if name in (entry["id"], entry.get("root")):
                return entry
        raise ApiError(404, f"model '{name}' is not served", "model_not_found", "model")

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(body: ChatRequest) -> JSONResponse | StreamingResponse:
        """An answer to a conversation, plain or streamed; users may show pictures as data: URIs, and speak."""
        return await _answer(body, backends, catalogue, args, attachments)

    @app.post("/v1/completions", response_model=None)
    async def completions(body: CompletionRequest) -> JSONResponse | StreamingResponse:
        """How a text goes on, plain or streamed."""
        return await _answer(body, backends, catalogue, args, attachments)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 when every base generates, the encoder sees and speech is heard; 503 with what is wrong."""
        problems = await asyncio.gather(*(backend.check() for backend in everything.values()))
        wrong = {name: text for name, text in zip(everything, problems, strict=True) if text}
        content: dict[str, Any] = {"status": "failing", "bases": wrong}
        if not wrong:
            content = {"status": "ok", "bases": list(backends)}
            if image is not None:
                content["encoder"] = await image.counts()
            if audio is not None:
                content["speech"] = await audio.counts()
        return JSONResponse(content, status_code=503 if wrong else 200)

    return app


async def _answer(
    body: ChatRequest | CompletionRequest,
    backends: Mapping[str, TextBackend],
    catalogue: Catalogue,
    args: ServeArgs,
    attachments: Attachments,
) -> JSONResponse | StreamingResponse:
    requests = body.requests(args)
    route = await asyncio.to_thread(catalogue.route, body.model, body.language, body.allow_base)
    if route.base not in backends:
        where = "/v1/audio/transcriptions" if route.base == catalogue.speech else "/v1/embeddings or /v1/classify"
        text = f"'{route.model}' generates no text: ask it at {where}"
        raise ApiError(400, text, "invalid_value", "model")
    headers = route_headers(route)
    if isinstance(body, ChatRequest):
        attachments.check_rerank(body)
        requests[0], timing = await attachments.enter(requests[0], body, route)
        headers |= {"Server-Timing": timing} if timing else {}
    streams = [backends[route.base].stream(request, route.adapter, not body.stream) for request in requests]
    try:
        # The first event decides the status, which a stream has to send before its text.
        prompt_tokens = [_started(event) for event in await asyncio.gather(*(anext(stream) for stream in streams))]
    except BaseException:
        await _close(streams)
        raise
    chat = isinstance(body, ChatRequest)
    request_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
    shape = Shape(
        chat, request_id, int(time.time()), route.model, requests[0].n, logprobs=requests[0].logprobs is not None
    )
    pieces = _together(streams)
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        headers |= {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        answer = _closing(pieces, shape.streamed(pieces, prompt_tokens, with_usage))
        return StreamingResponse(answer, media_type="text/event-stream", headers=headers)
    async with aclosing(pieces):
        whole = await shape.whole(pieces, prompt_tokens)
    if isinstance(body, ChatRequest) and body.rerank:
        whole = await attachments.rerank(whole, body)
    return JSONResponse(whole, headers=headers)


def _started(event: Event) -> int:
    if isinstance(event, Failed):
        raise ApiError.of(event)
    if not isinstance(event, Started):
        raise RuntimeError("a generator began without Started")
    return event.prompt_tokens


async def _together(streams: Sequence[AsyncGenerator[Event]]) -> Pieces:
    """The events of all streams as they come; ends the streams when it ends itself."""
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for event in streams[0]:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event] | None] = asyncio.Queue()

    async def pump(number: int, stream: AsyncGenerator[Event]) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    queue.put_nowait((number, event))
        finally:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    try:
        running = len(tasks)
        while running:
            found = await queue.get()
            if found is None:
                running -= 1
            else:
                yield found
        for task in tasks:
            task.result()  # an exception of a stream is ours
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _close(streams: Sequence[AsyncGenerator[Event]]) -> None:
    for stream in streams:
        with suppress(RuntimeError):  # it is still at its first event, which ends with the request
            await stream.aclose()


async def _closing(pieces: Pieces, answer: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """`answer`, made from `pieces`, which end with it: a client that has gone must free its row now, not when the
    garbage is collected.
    """
    async with aclosing(pieces):
        async for data in answer:
            yield data


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(pages.home(), headers=pages.HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(pages.docs(app.openapi()), headers=pages.HEADERS)


def _add_adapters(app: FastAPI, backends: Mapping[str, Backend], catalogue: Catalogue) -> None:
    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        """The adapters that can be asked for, and which of them are in memory, with how many requests use each."""
        loaded = {name: await backend.adapters() for name, backend in backends.items()}
        held = {entry["adapter"]: entry | {"base": name} for name, found in loaded.items() for entry in found}
        entries = []
        for adapter in await asyncio.to_thread(catalogue.adapters):
            for number in adapter.versions:
                spec = f"{adapter.name}@{number}"
                found = held.pop(spec, None)
                entries.append(
                    {
                        "id": spec,
                        "object": "adapter",
                        "parent": adapter.card.base.name,
                        "language": adapter.card.language,
                        "aliases": _aliases(adapter, number),
                        "loaded": found is not None,
                        "in_use": found["in_use"] if found else 0,
                    }
                )
        # Gone from the registry, but still answering who asked before
        entries += [
            {
                "id": spec, "object": "adapter", "parent": found["base"], "language": [], "aliases": [],
                "loaded": True, "in_use": found["in_use"],
            }
            for spec, found in held.items()
        ]  # fmt: skip
        return {"object": "list", "data": entries}

    @app.post("/v1/adapters")
    async def load(body: AdapterRequest) -> dict[str, Any]:
        """Load an adapter ahead of its first request."""
        route = await asyncio.to_thread(catalogue.route, body.adapter)
        if route.adapter is None:
            raise ApiError(400, f"'{body.adapter}' is no adapter", "invalid_value", "adapter")
        failed = await backends[route.base].load(route.adapter)
        if failed:
            raise ApiError.of(failed)
        return {"id": route.adapter, "object": "adapter", "parent": route.base, "loaded": True}

    @app.delete("/v1/adapters/{spec}")
    async def unload(spec: str) -> dict[str, Any]:
        """Take an adapter out of memory once no request uses it; the registry keeps it."""
        for backend in backends.values():
            if await backend.unload(spec):
                return {"id": spec, "object": "adapter", "loaded": False}
        raise ApiError(404, f"adapter '{spec}' is not loaded (give NAME@VERSION)", "not_found", "adapter")


def _aliases(adapter: Adapter, number: int) -> list[str]:
    return [alias for alias, version_ in adapter.aliases.items() if version_ == number]


def _models(catalogue: Catalogue, started: int) -> list[dict[str, Any]]:
    bases = [
        {
            "id": base.name, "object": "model", "created": started, "owned_by": "kauli", "parent": None,
            "task": base.task, "language": list(base.languages), "licence": base.licence,
        }
        for base in catalogue.all_bases().values()
    ]  # fmt: skip
    return bases + [_adapter_model(adapter) for adapter in catalogue.adapters()]


def _adapter_model(adapter: Adapter) -> dict[str, Any]:
    card = adapter.card
    return {
        "id": adapter.name, "object": "model", "created": adapter.created, "owned_by": "kauli",
        "parent": card.base.name, "root": adapter.spec, "task": card.task, "language": card.language,
        "licence": card.licence, "versions": list(adapter.versions), "aliases": adapter.aliases,
    }  # fmt: skip


def _add_error_handlers(app: FastAPI) -> None:
    def respond(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(KauliError)
    async def kauli_error(request: Request, error: KauliError) -> JSONResponse:
        if isinstance(error, UnknownModel):
            return respond(ApiError(404, str(error), "model_not_found", "model"))
        if isinstance(error, UnknownLanguage):
            return respond(ApiError(404, str(error), "language_not_served", "language"))
        if isinstance(error, UsageError):
            return respond(ApiError(400, str(error), "invalid_value"))
        return respond(ApiError(503, str(error), "unavailable"))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        known = [*ChatRequest.model_fields, "prompt", "input", "classes", "encoding_format", "dimensions"]
        return respond(invalid_body(error.errors(), known))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "body_too_large"}
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        message = f"{error.detail}{where}"
        return respond(ApiError(error.status_code, message, codes.get(error.status_code, "bad_request")))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return respond(ApiError(500, "internal error; the service's log says more", "internal_error"))
