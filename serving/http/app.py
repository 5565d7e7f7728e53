"""The FastAPI application: OpenAI's paths over the models of a catalogue and the workers that answer them."""

import asyncio
import logging
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from kauli.models.adapters.mixture import MixtureError
from kauli.models.adapters.registry import Registry
from kauli.models.errors import KauliError, UsageError
from kauli.models.tasks import resolve
from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Refused, internal_error
from kauli.serving.http import pages
from kauli.serving.http.answers import error_response
from kauli.serving.http.auth import Access
from kauli.serving.http.bodies import ApiError, invalid_body
from kauli.serving.http.cards import card_of
from kauli.serving.http.schemas import AdapterRequest, RevocationRequest
from kauli.serving.http.service import add_service
from kauli.serving.routing import Adapter, Catalogue, UnknownLanguage, UnknownModel, served_task
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import TASKS, WORKERS

_log = logging.getLogger(__name__)


def create_app(workers: Mapping[str, Mapping[str, Any]], catalogue: Catalogue, args: ServeArgs) -> FastAPI:
    """The application over `workers`: kind of worker -> name of a base -> what runs it, here or behind a handle.

    A worker that is not in the catalogue only encodes media for others.
    """
    # The stock /docs page loads its scripts from another site.
    app = FastAPI(title="Kauli", version=version("kauli"), docs_url=None, redoc_url=None)
    app.add_middleware(Access, args=args, workers=tuple(workers))
    if args.cors_origins:  # around `Access`: a browser asks first, without a key, and reads what is refused, too
        app.add_middleware(
            CORSMiddleware, allow_origins=args.cors_origins, allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",), allow_private_network=True, expose_headers=("*",),
        )  # fmt: skip
    backends = Backends(workers, catalogue, args)
    _add_error_handlers(app, args)
    _add_pages(app)
    _add_adapters(app, backends)
    _add_models(app, catalogue)
    add_service(app, backends)
    for endpoints in dict.fromkeys(row.endpoints for row in TASKS.values()):
        resolve(endpoints)(app, backends)

    @app.get("/health")
    async def health() -> JSONResponse:
        """200 when every worker works; 503 with what is wrong."""
        running = backends.running()
        problems = await asyncio.gather(*(backend.check() for _, backend in running))
        wrong = {name: text for (name, _), text in zip(running, problems, strict=True) if text}
        if wrong:
            return JSONResponse({"status": "failing", "bases": wrong}, status_code=503)
        content: dict[str, Any] = {"status": "ok", "bases": list(workers.get("text", ()))}
        for worker, found in workers.items():
            if WORKERS[worker].health:
                content[WORKERS[worker].health] = await next(iter(found.values())).counts()
        return JSONResponse(content)

    return app


def _add_models(app: FastAPI, catalogue: Catalogue) -> None:
    started = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The served bases and adapters."""
        return {"object": "list", "data": await asyncio.to_thread(_models, catalogue, started)}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One base or adapter."""
        for entry in await asyncio.to_thread(_models, catalogue, started):
            if name in (entry["id"], entry.get("root")):
                return entry
        raise ApiError(404, f"model '{name}' is not served", "model_not_found", "model")


def _add_pages(app: FastAPI) -> None:
    def add_file(path: str, found: pages.PlaygroundFile) -> None:
        @app.get(path, include_in_schema=False)
        async def file(request: Request) -> Response:
            if found.tag in request.headers.get("if-none-match", ""):
                return Response(status_code=304, headers=found.headers)
            return Response(found.content, headers=found.headers, media_type=found.media_type)

    for path, found in pages.playground().items():
        add_file(path, found)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(pages.docs(app.openapi()), headers=pages.HEADERS)


def _add_adapters(app: FastAPI, backends: Backends) -> None:
    catalogue = backends.catalogue

    @app.get("/v1/adapters")
    async def adapters() -> dict[str, Any]:
        """The served adapters, and which of them are in memory, with the number of requests that use each."""
        loaded = [(name, await backend.adapters()) for name, backend in backends.running()]
        held = {entry["adapter"]: entry | {"base": name} for name, found in loaded for entry in found}
        entries = [
            _adapter_entry(spec, adapter.card.base.name, held.pop(spec, {"in_use": 0}), adapter, number)
            for adapter in await asyncio.to_thread(catalogue.adapters)
            for number in adapter.versions
            for spec in (f"{adapter.name}@{number}",)
        ]
        # Removed from the registry, but still in use
        entries += [_adapter_entry(spec, found["base"], found) for spec, found in held.items()]
        return {"object": "list", "data": entries}

    @app.get("/v1/adapters/{spec}")
    async def card(spec: str) -> dict[str, Any]:
        """What is known of an adapter (NAME, NAME@VERSION or NAME@ALIAS): data, licence, figures beside its base."""
        return card_of(await asyncio.to_thread(catalogue.card, spec))

    @app.post("/v1/adapters")
    async def load(body: AdapterRequest) -> dict[str, Any]:
        """Load an adapter ahead of its first request."""
        await asyncio.to_thread(catalogue.reread)  # it may have been published a moment ago
        route = await asyncio.to_thread(catalogue.route, body.adapter)
        if route.adapter is None:
            raise ApiError(400, f"'{body.adapter}' is not an adapter", "invalid_value", "adapter")
        if failed := await backends.of(route).load(route.adapter):
            raise Refused(failed)
        return {"id": route.adapter, "object": "adapter", "parent": route.base, "loaded": True}

    @app.post("/v1/adapters/revoke")
    async def revoke(body: RevocationRequest) -> dict[str, Any]:
        """Let nobody use an adapter any more: a version, or all of a name; every replica stops within seconds."""
        revoked = await asyncio.to_thread(Registry(backends.args.storage).revoke, body.adapter, body.why)
        await asyncio.to_thread(catalogue.reread)
        for _, backend in backends.running():
            for spec in revoked:
                await backend.unload(spec)
        return {"object": "list", "data": [{"id": spec, "object": "adapter", "revoked": True} for spec in revoked]}

    @app.delete("/v1/adapters/{spec}")
    async def unload(spec: str) -> dict[str, Any]:
        """Remove an adapter and its mixtures from memory once no request uses them; the registry keeps it."""
        for _, backend in backends.running():
            if await backend.unload(spec):
                return {"id": spec, "object": "adapter", "loaded": False}
        raise ApiError(404, f"adapter '{spec}' is not loaded (give NAME@VERSION)", "not_found", "adapter")


def _adapter_entry(
    spec: str, base: str, held: Mapping[str, Any], adapter: Adapter | None = None, number: int = 0
) -> dict[str, Any]:
    return {
        "id": spec, "object": "adapter", "parent": base, "language": adapter.card.language if adapter else [],
        "aliases": [name for name, version_ in adapter.aliases.items() if version_ == number] if adapter else [],
        "loaded": "base" in held, "in_use": held["in_use"],
    }  # fmt: skip


def _models(catalogue: Catalogue, started: int) -> list[dict[str, Any]]:
    bases = [
        {
            "id": base.name, "object": "model", "created": started, "owned_by": "kauli", "parent": None,
            "task": base.task, "language": list(base.languages), "licence": base.licence,
        }
        for base in catalogue.bases().values()
    ]  # fmt: skip
    return bases + [_adapter_model(adapter) for adapter in catalogue.adapters()]


def _adapter_model(adapter: Adapter) -> dict[str, Any]:
    card = adapter.card
    return {
        "id": adapter.public, "object": "model", "created": adapter.created, "owned_by": "kauli",
        "parent": card.base.name, "root": card.spec, "task": card.task, "language": card.language,
        "licence": card.licence, "versions": list(adapter.versions), "aliases": adapter.aliases,
        "answers": served_task(card), "media": sorted(card.encoders),
        "pairs": card.translation.pairs if card.translation else [],
        "certificates": {
            tag: one.model_dump(include={"metric", "level", "green", "yellow", "segments", "coverage",
                                         "rank_correlation"})
            for tag, one in card.certificates.items()
        },
    }  # fmt: skip


def _add_error_handlers(app: FastAPI, args: ServeArgs) -> None:
    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return error_response(error.failed)

    @app.exception_handler(KauliError)
    async def kauli_error(request: Request, error: KauliError) -> JSONResponse:
        if isinstance(error, UnknownModel):
            return error_response(Failed(404, str(error), "model_not_found", "model"))
        if isinstance(error, UnknownLanguage):
            return error_response(Failed(404, str(error), "language_not_served", "language"))
        if isinstance(error, UsageError):
            param = "model" if isinstance(error, MixtureError) else None
            return error_response(Failed(400, str(error), "invalid_value", param))
        return error_response(Failed(503, str(error), "unavailable"))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        return error_response(invalid_body(error.errors()).failed)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed", 408: "body_timeout", 413: "body_too_large"}
        where = f": {request.method} {request.url.path}" if error.status_code in (404, 405) else ""
        message = f"{error.detail}{where}"
        if error.status_code == 404 and not request.url.path.startswith("/v1/"):
            message += ". The paths of OpenAI's API begin with /v1: a client's base_url ends with it"
        if error.detail == "There was an error parsing the body":  # FastAPI's, of bytes and depths that json refuses
            message = (
                "the body can't be read as JSON: send an object in UTF-8, not compressed, not nested thousands deep"
            )
        return error_response(Failed(error.status_code, message, codes.get(error.status_code, "bad_request")))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(internal_error("internal error", args))
