"""The endpoints of the space that pictures and texts share: /v1/embeddings and /v1/classify."""

import asyncio
import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from kauli.serving.events import NOT_ALIGNED, Failed, ImageBackend, Ranked
from kauli.serving.http.media import picture_bytes
from kauli.serving.http.schemas import ApiError, ClassifyRequest, EmbeddingRequest, ImageInput
from kauli.serving.routing import Catalogue, Route
from kauli.serving.settings import ServeArgs


def add_shared_space(app: FastAPI, image: ImageBackend | None, catalogue: Catalogue, args: ServeArgs) -> None:
    """Add the endpoints; they answer 404 where no aligned base is served."""

    async def routed(model: str, language: str | None = None) -> tuple[ImageBackend, Route]:
        if image is None or catalogue.aligned is None:
            raise ApiError.of(NOT_ALIGNED)
        route = await asyncio.to_thread(catalogue.route, model, language)
        if route.base != catalogue.aligned:
            text = f"'{model}' has no space for pictures and texts: ask {catalogue.aligned}"
            raise ApiError(400, text, "invalid_value", "model")
        return image, route

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest) -> JSONResponse:
        """Texts, and pictures as data: URIs, as vectors of length 1 in one space: their products are similarities."""
        encoder, route = await routed(body.model)
        if route.adapter:
            raise ApiError(
                400, f"'{route.adapter}' classifies: ask {route.base} for embeddings", "invalid_value", "model"
            )
        found = await encoder.embed(await _contents(body.inputs(args)))
        if isinstance(found, Failed):
            raise _error(found, body)
        width = found.values.shape[1]
        if body.dimensions not in (None, width):
            text = f"dimensions {body.dimensions}: {route.base} gives {width}, and no other number"
            raise ApiError(400, text, "invalid_value", "dimensions")
        data = [
            {"object": "embedding", "index": place, "embedding": _encoded(vector, body.encoding_format)}
            for place, vector in enumerate(found.values)
        ]
        usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
        return JSONResponse({"object": "list", "data": data, "model": route.model, "usage": usage})

    @app.post("/v1/classify")
    async def classify(body: ClassifyRequest) -> JSONResponse:
        """The classes of texts, and of pictures as data: URIs, by a trained head or by the names of `classes`."""
        if body.classes and body.model == "classify":
            encoder, route = await routed("embed")
        else:
            encoder, route = await routed(body.model, body.language)
        inputs = await _contents(body.inputs(args))
        if route.adapter and body.classes:
            text = f"'{route.adapter}' has its own classes: leave classes out, or ask {route.base}"
            raise ApiError(400, text, "invalid_value", "classes")
        if route.adapter:
            found = await encoder.classify(route.adapter, inputs)
        elif body.classes:
            found = await encoder.classify_as(body.classes, inputs)
        else:
            text = f"{route.base} needs classes to choose from, or ask an adapter with a head"
            raise ApiError(400, text, "invalid_value", "classes")
        if isinstance(found, Failed):
            raise _error(found, body)
        headers = {"X-Kauli-Adapter": route.adapter} if route.adapter else {}
        if route.language:
            headers["X-Kauli-Language"] = route.language
        data = [_classified(place, ranked) for place, ranked in enumerate(found)]
        return JSONResponse({"object": "list", "data": data, "model": route.model}, headers=headers)


def _error(failed: Failed, body: EmbeddingRequest | ClassifyRequest) -> ApiError:
    """The encoder counts inputs; a single one has no number in the body."""
    return ApiError.of(
        replace(failed, param="input") if failed.code == "invalid_image" and isinstance(body.input, str) else failed
    )


async def _contents(inputs: Sequence[str | ImageInput]) -> list[str | bytes]:
    def read() -> list[str | bytes]:
        return [picture_bytes(one) if isinstance(one, ImageInput) else one for one in inputs]

    return await asyncio.to_thread(read)


def _encoded(vector: np.ndarray, form: str) -> Any:
    """As numbers, or as base64 of little-endian 32-bit floats, which the openai client asks for."""
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _classified(place: int, ranked: Ranked) -> dict[str, Any]:
    probabilities = [{"label": label, "probability": value} for label, value in ranked]
    return {"object": "classification", "index": place, "label": ranked[0][0], "probabilities": probabilities}
