"""The endpoints /v1/translate and /v1/memory: texts and documents translated with what a tenant confirmed before."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import Field

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.documents.table import open_document
from kauli.models.languages import check_tag
from kauli.models.text.detection import detect
from kauli.models.text.memory import Confirmed
from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Refused
from kauli.serving.http.answers import route_headers
from kauli.serving.http.auth import tenant
from kauli.serving.http.bodies import ApiError, Body, JsonBody, check_limits
from kauli.serving.http.libretranslate import add_libretranslate
from kauli.serving.translation import Draft, Translator, count_marks, languages_of


class DocumentBody(Body):
    """A document in its own format."""

    name: str = Field(min_length=1, max_length=255)
    """Of the file; its suffix tells the format."""
    content: str
    """The bytes in base64."""
    format: str | None = None
    encoding: str | None = None
    columns: list[str] | None = Field(default=None, min_length=2, max_length=2)
    tier: str | None = None


class TranslateRequest(JsonBody):
    """Texts or a document to translate."""

    text: str | list[str] | None = None
    document: DocumentBody | None = None
    source: str = "auto"
    target: str
    model: str = "translate"
    memory: str | list[str] = Field(default_factory=list)
    """Names of the tenant's memories."""
    only_missing: bool = False
    """Whether drafts that are in the document stay as they are."""

    @property
    def memories(self) -> list[str]:
        """The names as a list."""
        return [self.memory] if isinstance(self.memory, str) else self.memory


class PairBody(Body):
    """A confirmed pair, or a term."""

    source: str = Field(min_length=1)
    target: str = Field(min_length=1)
    kind: Literal["pair", "term"] = "pair"
    origin: str = ""


class MemoryRequest(JsonBody):
    """Pairs to add to a memory, which is made where there is none."""

    memory: str
    source: str
    target: str
    pairs: list[PairBody] = Field(min_length=1)


def add_translations(app: FastAPI, backends: Backends) -> None:
    """Add the endpoints, and those of LibreTranslate."""
    args = backends.args
    add_libretranslate(app, backends)

    @app.post("/v1/translate")
    async def translate(body: TranslateRequest, request: Request) -> JSONResponse:
        """Texts, or a document in its own format, translated; each answer or segment with its mark."""
        if (body.text is None) == (body.document is None):
            raise ApiError(400, "send either text or document", "invalid_value", "text")
        texts = [body.text] if isinstance(body.text, str) else body.text or []
        check_limits(("text", len(texts), "max_inputs", args.max_inputs))
        document = await asyncio.to_thread(_opened, body, args.max_segments) if body.document else None
        sample = " ".join(texts) if document is None else " ".join(one.source for one in document.segments[:50])
        served = await asyncio.to_thread(languages_of, backends)
        said = (None, None) if document is None else document.languages
        if said[1] and said[1].partition("-")[0] != check_tag(body.target).partition("-")[0]:
            text = f"the document says that its translations are in '{said[1]}', not in '{body.target}'"
            raise ApiError(400, text, "invalid_value", "target")
        given = said[0] if said[0] and body.source == "auto" else body.source
        source = await asyncio.to_thread(source_of, given, sample, served)
        translator = await Translator.of(
            backends, body.model, source, body.target, body.memories, tenant(request.scope)
        )
        headers = route_headers(translator.route)
        answer: dict[str, Any] = {
            "object": "translation", "model": translator.route.model, "source": source, "target": body.target,
        }  # fmt: skip
        if document is None:
            drafts = await asyncio.gather(*(translator.draft(text) for text in texts))
            return JSONResponse(answer | {"translations": [_shown(one) for one in drafts]}, headers=headers)
        assert body.document is not None
        found = await translator.document(document, only_missing=body.only_missing)
        segments = [{"id": one.id, "source": one.source} | _shown(found[one.id])
                    for one in document.segments if one.id in found]  # fmt: skip
        content = base64.b64encode(await asyncio.to_thread(document.write)).decode()
        judged = translator.judged(document, found)
        answer |= {"certificate": asdict(judged)} if judged else {}
        answer |= {
            "document": {"name": body.document.name, "format": document.format, "content": content},
            "segments": segments, "marks": count_marks(found),
        }  # fmt: skip
        return JSONResponse(answer, headers=headers)

    @app.get("/v1/memory")
    async def memories(request: Request) -> dict[str, Any]:
        """The memories of the key's tenant."""
        found = _allowed(await backends.memory().names(tenant(request.scope)))
        data = [
            {"id": name, "object": "memory",
             "pairs": [{"source": one, "target": other, "count": count} for (one, other), count in held.items()]}
            for name, held in found
        ]  # fmt: skip
        return {"object": "list", "data": data}

    @app.post("/v1/memory")
    async def add(body: MemoryRequest, request: Request) -> dict[str, Any]:
        """Add confirmed pairs and terms; they count at the next request."""
        check_limits(("pairs", len(body.pairs), "max_segments", args.max_segments))
        tags = check_tag(body.source), check_tag(body.target)
        pairs = [Confirmed(one.source, one.target, *tags, one.origin, one.kind) for one in body.pairs]
        ids = _allowed(await backends.memory().add(tenant(request.scope), body.memory, pairs))
        return {"object": "memory", "id": body.memory, "ids": ids}

    @app.get("/v1/memory/{name}")
    async def pairs(
        name: str, request: Request, containing: str | None = None, limit: int = 100, offset: int = 0
    ) -> dict[str, Any]:
        """What a memory holds, the oldest first."""
        if not (1 <= limit <= 1000 and offset >= 0):
            raise ApiError(400, "limit is from 1 to 1000, offset 0 or more", "invalid_value", "limit")
        options = {"containing": containing, "limit": limit, "offset": offset}
        found = _allowed(await backends.memory().pairs(tenant(request.scope), name, options))
        return {"object": "list", "data": [asdict(one) for one in found]}

    @app.delete("/v1/memory/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        """Delete a memory with all that it holds."""
        _allowed(await backends.memory().delete(tenant(request.scope), name))
        return {"id": name, "object": "memory", "deleted": True}

    @app.delete("/v1/memory/{name}/{pair}")
    async def remove(name: str, pair: str, request: Request) -> dict[str, Any]:
        """Remove one pair from a memory."""
        count = _allowed(await backends.memory().remove(tenant(request.scope), name, [pair]))
        if not count:
            raise ApiError(404, f"the memory '{name}' has no pair '{pair}'", "not_found", "pair")
        return {"id": pair, "object": "memory.pair", "deleted": True}


def source_of(given: str, text: str, served: Sequence[str]) -> str:
    """The language to translate from: the one that is given, or for "auto" the likeliest of those that are served."""
    if given != "auto":
        return check_tag(given)
    found = detect(text, served)
    if not found:
        raise ApiError(400, "the language of the text is not known: send source", "invalid_value", "source")
    return found[0][0]


def _opened(body: TranslateRequest, most: int) -> Document:
    asked = body.document
    assert asked is not None
    try:
        content = base64.b64decode(asked.content, validate=True)
    except ValueError as error:  # binascii.Error, and letters that are none of ASCII
        raise ApiError(400, f"document.content is not base64: {error}", "invalid_value", "document.content") from None
    options = DocumentOptions(
        None if body.source == "auto" else check_tag(body.source), check_tag(body.target), asked.encoding,
        columns=(asked.columns[0], asked.columns[1]) if asked.columns else None, tier=asked.tier,
    )  # fmt: skip
    document = open_document(content, asked.name, options, asked.format)
    if len(document.segments) > most:
        text = f"the document has {len(document.segments)} segments; this service allows {most} (setting max_segments)"
        raise ApiError(400, text, "value_too_large", "document")
    return document


def _shown(draft: Draft) -> dict[str, Any]:
    return {**asdict(draft), "reasons": list(draft.reasons)}


def _allowed(found: Any) -> Any:
    if isinstance(found, Failed):
        raise Refused(found)
    return found
