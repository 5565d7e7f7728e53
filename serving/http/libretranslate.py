"""LibreTranslate's paths over our adapters, so that tools which speak to it (OmegaT, Weblate) work unchanged.

The shapes are those of LibreTranslate 1.6. Its clients send their key in the body; it is read like one in the header.
A memory of the name `default`, where the tenant has one, is used.
"""

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from kauli.models.errors import KauliError
from kauli.models.languages import check_tag, display_name
from kauli.models.text.detection import detect
from kauli.models.text.memory_pairs import short_tag
from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Refused
from kauli.serving.http.auth import check_body_key
from kauli.serving.http.bodies import ApiError, check_limits, check_unicode
from kauli.serving.translation import Translator, languages_of, pairs_of

MEMORY = "default"
"""The memory that is used: LibreTranslate has no field for it."""
_MARKUP = ("text", "html")


def add_libretranslate(app: FastAPI, backends: Backends) -> None:
    """Add /translate, /detect and /languages."""

    @app.post("/translate")
    async def translate(request: Request) -> JSONResponse:
        """One text (`q`) or a list of them."""
        fields = await _fields(request)
        try:
            tenant = check_body_key(request.scope, backends.args, fields.get("api_key"))
            q, source, target = (fields.get(name) for name in ("q", "source", "target"))
            texts: list[Any] = q if isinstance(q, list) else [q]
            if not all(one and isinstance(one, str) for one in (*texts, source, target)) or not texts:
                text = "Invalid request: q (a text or a list of them), source and target parameters are needed"
                raise ApiError(400, text, "invalid_value")
            source, target = str(source), str(target)
            if fields.get("format", "text") not in _MARKUP:
                raise ApiError(400, f"Invalid format '{fields['format']}'", "invalid_value")
            check_limits(("q", len(texts), "max_inputs", backends.args.max_inputs))
            served = await asyncio.to_thread(languages_of, backends)
            found = await asyncio.to_thread(detect, " ".join(texts), served) if source == "auto" else []
            if source == "auto" and not found:
                raise ApiError(400, "The language of q is not known: send source", "invalid_value")
            spoken = found[0][0] if found else source
            names = await _memories(backends, tenant, check_tag(spoken), check_tag(target))
            translator = await Translator.of(backends, "translate", spoken, target, names, tenant)
            drafts = await asyncio.gather(*(translator.draft(text) for text in texts))
        except (Refused, KauliError) as error:
            return _error(error)
        answers = [one.text for one in drafts]
        content: dict[str, Any] = {"translatedText": answers if isinstance(q, list) else answers[0]}
        if found:
            content["detectedLanguage"] = {"confidence": round(100 * found[0][1]), "language": found[0][0]}
        return JSONResponse(content)

    @app.post("/detect")
    async def detected(request: Request) -> JSONResponse:
        """The likeliest languages of a text."""
        fields = await _fields(request)
        try:
            check_body_key(request.scope, backends.args, fields.get("api_key"))
            if not fields.get("q"):
                raise ApiError(400, "Invalid request: missing q parameter", "invalid_value")
        except Refused as error:
            return _error(error)
        served = await asyncio.to_thread(languages_of, backends)
        found = await asyncio.to_thread(detect, str(fields["q"]), served)
        return JSONResponse([{"confidence": round(100 * share), "language": tag} for tag, share in found])

    @app.get("/languages")
    async def languages(request: Request, api_key: Annotated[str | None, "LibreTranslate's"] = None) -> JSONResponse:
        """The languages that are translated, each with those that it is translated into."""
        try:
            check_body_key(request.scope, backends.args, api_key)
        except Refused as error:
            return _error(error)
        pairs = await asyncio.to_thread(pairs_of, backends)
        return JSONResponse([
            {"code": tag, "name": display_name(tag), "targets": sorted({b for a, b in pairs if a == tag} | {tag})}
            for tag in sorted({one for pair in pairs for one in pair})
        ])  # fmt: skip


async def _memories(backends: Backends, tenant: str, source: str, target: str) -> list[str]:
    """The memory `default`, where it holds something in these languages."""
    if "memory" not in backends.workers:
        return []
    found = await backends.memory().held(tenant, MEMORY)
    if isinstance(found, Failed):
        raise Refused(found)
    asked = short_tag(source), short_tag(target)
    return [MEMORY] if asked in found or asked[::-1] in found else []


async def _fields(request: Request) -> dict[str, Any]:
    """The fields of a JSON object or a form, and those of the query: clients send either."""
    query = dict(request.query_params)
    if "json" in request.headers.get("content-type", ""):
        try:
            body = await request.json()
            check_unicode(body)
        except (ValueError, RecursionError):
            return query
        return query | body if isinstance(body, dict) else query
    form = await request.form()
    several = {name: form.getlist(name) for name in form}
    return query | {name: found if len(found) > 1 else found[0] for name, found in several.items()}


def _error(error: Exception) -> JSONResponse:
    """LibreTranslate's shape of an error."""
    status = error.failed.status if isinstance(error, Refused) else 400
    return JSONResponse({"error": str(error)}, status_code=status)
