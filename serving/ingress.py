"""The FastAPI application: OpenAI's paths over a catalogue of models and the generators of their bases."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from kauli.models.errors import KauliError, UsageError, nearest
from kauli.serving.access import Access
from kauli.serving.api import ApiError, ChatRequest, completion, sse, stream_chunk, usage_of
from kauli.serving.catalogue import Adapter, Catalogue, Route, UnknownLanguage, UnknownModel
from kauli.serving.events import Event, Failed, Piece, Started, TextBackend
from kauli.serving.settings import ServeArgs

_log = logging.getLogger(__name__)


def create_app(backends: Mapping[str, TextBackend], catalogue: Catalogue, args: ServeArgs) -> FastAPI:
    """The application; `backends` maps the name of each of the catalogue's bases to what generates with it."""
    # The stock /docs page loads its scripts from another site.
    app = FastAPI(title="Kauli", docs_url=None, redoc_url=None)
    app.add_middleware(Access, args=args)
    _add_error_handlers(app)
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
        """An answer to a conversation, plain or streamed."""
        ask = body.ask(args.max_tokens)
        route = await asyncio.to_thread(catalogue.route, body.model, body.language, body.allow_base)
        events = backends[route.base].stream(ask, route.adapter)
        # The first event decides the status, which a stream has to send before its text.
        first = await anext(events)
        if not isinstance(first, Started):
            raise ApiError.of(first) if isinstance(first, Failed) else RuntimeError("a generator began without Started")
        request_id = f"chatcmpl-{uuid.uuid4().hex}"
        created = int(time.time())
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            answer = _stream(events, first.prompt_tokens, request_id, created, route.model, with_usage)
            headers = {**_headers(route), "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(answer, media_type="text/event-stream", headers=headers)
        text, finish, tokens = "", "stop", 0
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Failed):
                    raise ApiError.of(event)
                if isinstance(event, Piece):
                    text += event.text
                    tokens += event.tokens
                    finish = event.finish or finish
        usage = usage_of(first.prompt_tokens, tokens)
        return JSONResponse(completion(request_id, created, route.model, text, finish, usage), headers=_headers(route))

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 when every base generates; 503 with what is wrong."""
        problems = await asyncio.gather(*(backend.check() for backend in backends.values()))
        wrong = {name: text for name, text in zip(backends, problems, strict=True) if text}
        content = {"status": "failing", "bases": wrong} if wrong else {"status": "ok", "bases": list(backends)}
        return JSONResponse(content, status_code=503 if wrong else 200)

    return app


async def _stream(
    events: AsyncGenerator[Event], prompt_tokens: int, request_id: str, created: int, model: str, with_usage: bool
) -> AsyncGenerator[bytes]:
    tokens = 0
    # Closed here: a client that has gone must free its row now, not when the garbage is collected.
    async with aclosing(events):
        yield sse(stream_chunk(request_id, created, model, {"role": "assistant", "content": ""}))
        async for event in events:
            if isinstance(event, Failed):
                yield sse(ApiError.of(event).body())
                return
            if isinstance(event, Piece):
                tokens += event.tokens
                if event.text:
                    yield sse(stream_chunk(request_id, created, model, {"content": event.text}))
                if event.finish:
                    yield sse(stream_chunk(request_id, created, model, {}, event.finish))
    if with_usage:
        yield sse(stream_chunk(request_id, created, model, None, usage=usage_of(prompt_tokens, tokens)))
    yield sse("[DONE]")


def _headers(route: Route) -> dict[str, str]:
    headers = {"X-Kauli-Provenance": "ai-generated"}
    if route.adapter:
        headers["X-Kauli-Adapter"] = route.adapter
    if route.language:
        headers["X-Kauli-Language"] = route.language
    return headers


def _models(catalogue: Catalogue, started: int) -> list[dict[str, Any]]:
    bases = [
        {
            "id": base.name, "object": "model", "created": started, "owned_by": "kauli", "parent": None,
            "task": base.task, "language": list(base.languages), "licence": base.licence,
        }
        for base in catalogue.bases.values()
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
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if part != "body"]
        if first["type"] == "json_invalid":
            return respond(ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", "invalid_json"))
        param = ".".join(place) or None
        if first["type"] == "extra_forbidden" and len(place) == 1:
            hint = nearest(place[0], ChatRequest.model_fields)
            return respond(ApiError(400, f"unknown field '{place[0]}'.{hint}", "unknown_field", param))
        message = first["msg"].removeprefix("Value error, ")
        return respond(ApiError(400, f"{param}: {message}" if param else message, "invalid_value", param))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        message = f"{error.detail}{where}"
        return respond(ApiError(error.status_code, message, codes.get(error.status_code, "bad_request")))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return respond(ApiError(500, "internal error; the service's log says more", "internal_error"))
