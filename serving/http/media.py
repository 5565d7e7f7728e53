"""Images and audio in a conversation: read from the request, encoded for the adapter; answers reranked by an image."""

import asyncio
import time
from dataclasses import replace
from typing import Any

from kauli.models.errors import MediaError
from kauli.models.requests import TextRequest
from kauli.serving.backends import Attachment, Backends
from kauli.serving.http.bodies import ApiError
from kauli.serving.http.messages import MediaInput
from kauli.serving.http.payloads import read_data_uri, read_input_audio
from kauli.serving.http.schemas import ChatRequest
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
    forms = await backends.forms(route, [one.kind for one in media])
    attached = await asyncio.to_thread(lambda: [read(one) for one in media])
    found, cached = await backends.encode(forms, attached)
    # In the form that browsers show (W3C Server Timing)
    timing = f"encoder;desc={'hit' if cached else 'miss'};dur={1000 * (time.monotonic() - began):.1f}"
    return replace(request, media=found), timing


async def rerank(backends: Backends, answer: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
    """The answer with the one of its choices that is most similar to the image in the shared space."""
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    image = await asyncio.to_thread(read, body.images()[0])
    chosen = answer["choices"][await backends.nearest(image.content, texts)] | {"index": 0}
    return answer | {"choices": [chosen], "kauli": {"reranked": len(texts)}}


def read(one: MediaInput) -> Attachment:
    """The file of an image or an audio clip; raises ApiError where there is none, or only a remote address."""
    try:
        content = read_data_uri(one.data) if one.kind == "image" else read_input_audio(one.data)
    except MediaError as error:
        raise ApiError(400, str(error), f"invalid_{one.kind}", one.param) from None
    return Attachment(one.kind, content, one.param)
