"""Images and audio in a conversation: read from the request, encoded for the adapter; answers reranked by an image."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from kauli.models.errors import MediaError
from kauli.models.requests import NO_REPEAT, TextRequest
from kauli.serving.backends import Attachment, Backends
from kauli.serving.http.payloads import read_data_uri, read_input_audio
from kauli.serving.http.schemas import ApiError, AudioClip, ChatRequest, ImageInput
from kauli.serving.routing import Route


async def encode(
    backends: Backends, request: TextRequest, body: ChatRequest, route: Route
) -> tuple[TextRequest, str | None]:
    """The request with its media, and a `Server-Timing` header; unchanged where there are none.

    Raises Refused and ApiError where the adapter or the service takes no media of a kind, or one can't be read.
    """
    media = body.media()
    if not media:
        return request, None
    began = time.monotonic()
    forms = await backends.forms(route, ["image" if isinstance(one, ImageInput) else "audio" for one in media])
    attached = await asyncio.to_thread(lambda: [_attachment(one) for one in media])
    found, cached = await backends.encode(forms, attached)
    # In the form that browsers show (W3C Server Timing)
    timing = f"encoder;desc={'hit' if cached else 'miss'};dur={1000 * (time.monotonic() - began):.1f}"
    return replace(request, media=found, no_repeat=NO_REPEAT), timing


async def rerank(backends: Backends, answer: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
    """The answer with the one of its choices that is most similar to the image in the shared space."""
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    content = await asyncio.to_thread(image_bytes, body.images()[0])
    chosen = answer["choices"][await backends.nearest(content, texts)] | {"index": 0}
    return answer | {"choices": [chosen], "kauli": {"reranked": len(texts)}}


def image_bytes(image: ImageInput) -> bytes:
    """The encoded image; raises ApiError where the URI holds none, or is a remote address."""
    try:
        return read_data_uri(image.uri)
    except MediaError as error:
        raise ApiError(400, str(error), "invalid_image", image.param) from None


def _attachment(one: ImageInput | AudioClip) -> Attachment:
    if isinstance(one, ImageInput):
        return Attachment("image", image_bytes(one), one.param)
    try:
        return Attachment("audio", read_input_audio(one.audio.data, one.audio.format), one.param)
    except MediaError as error:
        raise ApiError(400, str(error), "invalid_audio", one.param) from None
