"""The endpoints of the space that images and texts share: /v1/embeddings and /v1/classify."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Ranked, Refused
from kauli.serving.http.bodies import ApiError, ignored_header
from kauli.serving.http.media import read
from kauli.serving.http.messages import MediaInput
from kauli.serving.http.schemas import ClassifyRequest, EmbeddingRequest


def add_shared_space(app: FastAPI, backends: Backends) -> None:
    """Add the endpoints; they answer 404 where no aligned base is served."""
    args = backends.args

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> JSONResponse:
        """Texts, and images as data: URIs, as vectors of length 1 in one space: their products are similarities."""
        route = await backends.route("embed", body.model)
        if route.adapter:
            text = f"Model '{route.adapter}' cannot produce embeddings; use model '{route.base}'"
            raise ApiError(400, text, "invalid_value", "model")
        encoder = backends.of(route)
        found = await encoder.embed(await _contents(body.inputs(args)))
        if isinstance(found, Failed):
            raise _refused(found, body)
        width = found.values.shape[1]
        if body.dimensions not in (None, width):
            text = f"dimensions {body.dimensions} is not supported; model '{route.base}' gives {width}"
            raise ApiError(400, text, "invalid_value", "dimensions")
        data = [
            {"object": "embedding", "index": place, "embedding": _encoded(vector, body.encoding_format)}
            for place, vector in enumerate(found.values)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        headers = ignored_header(body)
        if found.truncated:  # the encoder read their beginning alone
            headers["X-Kauli-Truncated"] = ", ".join(f"input.{place}" for place in found.truncated)
        answer = {"object": "list", "data": data, "model": route.model, "usage": usage}
        return JSONResponse(answer, headers=headers)

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> JSONResponse:
        """The classes of texts, and of images as data: URIs, by a trained head or by the names in `classes`."""
        if body.classes and body.model == "classify":
            route = await backends.route("embed", "embed")
        else:
            route = await backends.route("classify", body.model, body.language)
        encoder = backends.of(route)
        inputs = await _contents(body.inputs(args))
        if route.adapter and body.classes:
            text = f"'{route.adapter}' has its own classes: leave classes out, or use model '{route.base}'"
            raise ApiError(400, text, "invalid_value", "classes")
        if route.adapter:
            found = await encoder.classify(route.adapter, inputs)
        elif body.classes:
            found = await encoder.classify_as(body.classes, inputs)
        else:
            text = f"'{route.base}' needs classes to choose from, or use an adapter with a head"
            raise ApiError(400, text, "invalid_value", "classes")
        if isinstance(found, Failed):
            raise _refused(found, body)
        headers = ignored_header(body) | ({"X-Kauli-Adapter": route.adapter} if route.adapter else {})
        if route.language:
            headers["X-Kauli-Language"] = route.language
        data = [_classified(place, ranked) for place, ranked in enumerate(found)]
        return JSONResponse({"object": "list", "data": data, "model": route.model}, headers=headers)


def _refused(failed: Failed, body: EmbeddingRequest | ClassifyRequest) -> Refused:
    """The encoder numbers inputs; a single one has no number in the body."""
    return Refused(
        replace(failed, param="input") if failed.code == "invalid_image" and isinstance(body.input, str) else failed
    )


async def _contents(inputs: Sequence[str | MediaInput]) -> list[str | bytes]:
    return await asyncio.to_thread(lambda: [one if isinstance(one, str) else read(one).content for one in inputs])


def _encoded(vector: np.ndarray, form: str) -> Any:
    """As numbers, or as base64 of little-endian 32-bit floats, which the openai client asks for."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _classified(place: int, ranked: Ranked) -> dict[str, Any]:
    probabilities = [{"label": label, "probability": value} for label, value in ranked]
    return {"object": "classification", "index": place, "label": ranked[0][0], "probabilities": probabilities}
