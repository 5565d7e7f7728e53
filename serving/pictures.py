"""Pictures in a conversation: from data: URIs to features in a generator's request, and the choice among answers."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kauli.models.media import MediaError, read_data_uri
from kauli.models.requests import NO_REPEAT, Media, TextRequest
from kauli.serving.api import ApiError, ChatRequest, Picture
from kauli.serving.catalogue import Route
from kauli.serving.events import NOT_ALIGNED, Failed, Features, ImageBackend, PictureForm, TextBackend


class Pictures:
    """The way of a conversation's pictures to a generator; `image` is None where no encoder is served."""

    def __init__(self, texts: Mapping[str, TextBackend], image: ImageBackend | None, aligned: bool) -> None:
        self._texts, self._image, self._aligned = texts, image, aligned
        self._forms: dict[str, PictureForm | None] = {}  # by name@version, which never changes

    async def enter(self, request: TextRequest, body: ChatRequest, route: Route) -> tuple[TextRequest, str | None]:
        """The request with its pictures as media, and a `Server-Timing` header; unchanged where there are none.

        Raises ApiError where the adapter or the service takes no pictures, or a picture can't be read.
        """
        pictures = body.pictures()
        if not pictures:
            return request, None
        began = time.monotonic()
        form = await self._form(route)
        if self._image is None:
            raise ApiError(503, "no image encoder runs here: serve the task describe", "unavailable", "model")
        contents = await asyncio.to_thread(lambda: [content_of(picture) for picture in pictures])
        found = await asyncio.gather(*(self._image.features(content, form) for content in contents))
        media = []
        for picture, features in zip(pictures, found, strict=True):
            if isinstance(features, Failed):
                param = picture.param if features.code == "invalid_image" else features.param
                raise ApiError.of(replace(features, param=param))
            media.append(Media("image", features.values))
        return replace(request, media=tuple(media), no_repeat=NO_REPEAT), _timing(found, time.monotonic() - began)

    def check_rerank(self, body: ChatRequest) -> None:
        """Raise ApiError where answers can't be ranked by a picture."""
        if body.rerank and (self._image is None or not self._aligned):
            raise ApiError(NOT_ALIGNED.status, NOT_ALIGNED.message, "model_not_found", "rerank")

    async def rerank(self, answer: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
        """The answer with that one of its choices that is nearest to the picture in the shared space."""
        assert self._image is not None
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        content = await asyncio.to_thread(content_of, body.pictures()[0])
        # A blank answer describes nothing, however near it may lie.
        said = [place for place, text in enumerate(texts) if text.strip()]
        best = 0
        if said:
            vectors = await self._image.embed([content, *(texts[place] for place in said)])
            if isinstance(vectors, Failed):
                raise ApiError.of(vectors)
            best = said[int((vectors.values[1:] @ vectors.values[0]).argmax())]
        chosen = answer["choices"][best] | {"index": 0}
        return answer | {"choices": [chosen], "kauli": {"reranked": len(texts)}}

    async def _form(self, route: Route) -> PictureForm:
        if route.adapter is None:
            raise ApiError(400, _refusal(route.base), "no_pictures", "model")
        if route.adapter not in self._forms:
            form = await self._texts[route.base].picture_form(route.adapter)
            if isinstance(form, Failed):
                raise ApiError.of(form)
            self._forms[route.adapter] = form
        found = self._forms[route.adapter]
        if found is None:
            raise ApiError(400, _refusal(route.adapter), "no_pictures", "model")
        return found


def content_of(picture: Picture) -> bytes:
    """The encoded picture; raises ApiError where the URI holds none, or is a remote address."""
    try:
        return read_data_uri(picture.uri)
    except MediaError as error:
        raise ApiError(400, str(error), "invalid_image", picture.param) from None


def _refusal(model: str) -> str:
    return f"'{model}' takes no pictures: ask the model describe with a language, or an adapter of the task describe"


def _timing(found: Sequence[Features | Failed], seconds: float) -> str:
    """In the form that browsers show (W3C Server Timing)."""
    hits = sum(features.cached for features in found if isinstance(features, Features))
    says = "hit" if hits == len(found) else "miss"
    return f"encoder;desc={says};dur={1000 * seconds:.1f}"
