"""Pictures and recordings in a conversation: from what a client sends to features in a generator's request.

And the choice among several answers about a picture.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from kauli.models.media.decode import MediaError
from kauli.models.requests import NO_REPEAT, Media, TextRequest
from kauli.serving.events import (
    NOT_ALIGNED,
    AudioBackend,
    EncodedMedia,
    Failed,
    ImageBackend,
    MediaBackend,
    MediaForm,
    TextBackend,
)
from kauli.serving.http.payloads import read_data_uri, read_input_audio
from kauli.serving.http.schemas import ApiError, ChatRequest, ImageInput, SpokenInput
from kauli.serving.routing import Catalogue, Route, hearing_base

_WORDS = {"image": "pictures", "audio": "recordings"}


class Attachments:
    """The way of a conversation's media to a generator; `image` and `audio` are None where nothing sees or hears."""

    def __init__(
        self,
        texts: Mapping[str, TextBackend],
        image: ImageBackend | None,
        audio: AudioBackend | None,
        catalogue: Catalogue,
    ) -> None:
        self._texts, self._image, self._audio, self._catalogue = texts, image, audio, catalogue
        self._forms: dict[str, dict[str, MediaForm]] = {}  # by name@version, which never changes

    async def enter(self, request: TextRequest, body: ChatRequest, route: Route) -> tuple[TextRequest, str | None]:
        """The request with its media, and a `Server-Timing` header; unchanged where there are none.

        Raises ApiError where the adapter or the service takes no media of a kind, or one can't be read.
        """
        attached = body.media()
        if not attached:
            return request, None
        began = time.monotonic()
        kinds = ["image" if isinstance(one, ImageInput) else "audio" for one in attached]
        forms = {kind: await self._form(route, kind) for kind in dict.fromkeys(kinds)}
        encoders = {kind: self._encoder(kind, form) for kind, form in forms.items()}
        contents = await asyncio.to_thread(lambda: [_bytes_of(one) for one in attached])
        found = await asyncio.gather(
            *(encoders[kind].features(content, forms[kind]) for kind, content in zip(kinds, contents, strict=True))
        )
        media = []
        for one, kind, features in zip(attached, kinds, found, strict=True):
            if isinstance(features, Failed):
                unreadable = features.code in ("invalid_image", "invalid_audio")
                raise ApiError.of(replace(features, param=one.param if unreadable else features.param))
            media.append(Media(kind, features.values))
        return replace(request, media=tuple(media), no_repeat=NO_REPEAT), _timing(found, time.monotonic() - began)

    def check_rerank(self, body: ChatRequest) -> None:
        """Raise ApiError where answers can't be ranked by a picture."""
        if body.rerank and (self._image is None or self._catalogue.aligned is None):
            raise ApiError(NOT_ALIGNED.status, NOT_ALIGNED.message, "model_not_found", "rerank")

    async def rerank(self, answer: dict[str, Any], body: ChatRequest) -> dict[str, Any]:
        """The answer with that one of its choices that is nearest to the picture in the shared space."""
        assert self._image is not None
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        content = await asyncio.to_thread(picture_bytes, body.pictures()[0])
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

    async def _form(self, route: Route, kind: str) -> MediaForm:
        """What the adapter takes for this kind of media."""
        forms = {} if route.adapter is None else self._forms.get(route.adapter)
        if forms is None:
            assert route.adapter is not None
            found = await self._texts[route.base].media_forms(route.adapter)
            if isinstance(found, Failed):
                raise ApiError.of(found)
            forms = self._forms[route.adapter] = found
        if kind not in forms:
            text = f"'{route.model}' takes no {_WORDS[kind]}: {await self._advice(kind)}"
            raise ApiError(400, text, f"no_{_WORDS[kind]}", "model")
        return forms[kind]

    async def _advice(self, kind: str) -> str:
        if kind == "image":
            return "ask the model describe with a language, or an adapter of the task describe"
        adapters = await asyncio.to_thread(self._catalogue.adapters)
        hears = next((adapter.name for adapter in adapters if hearing_base(adapter.card)), None)
        if hears:
            return f"ask an adapter that does, such as {hears}"
        elsewhere = "; /v1/audio/transcriptions writes them down" if self._catalogue.speech else ""
        return f"no adapter served here does{elsewhere}"

    def _encoder(self, kind: str, form: MediaForm) -> MediaBackend:
        if kind == "image":
            if self._image is None:
                raise ApiError(503, "no image encoder runs here: serve the task describe", "unavailable", "model")
            return self._image
        if self._audio is None:
            text = f"no speech encoder runs here: kauli fetch {form.encoder}, then start kauli serve again"
            raise ApiError(503, text, "unavailable", "model")
        return self._audio


def picture_bytes(picture: ImageInput) -> bytes:
    """The encoded picture; raises ApiError where the URI holds none, or is a remote address."""
    try:
        return read_data_uri(picture.uri)
    except MediaError as error:
        raise ApiError(400, str(error), "invalid_image", picture.param) from None


def _bytes_of(one: ImageInput | SpokenInput) -> bytes:
    if isinstance(one, ImageInput):
        return picture_bytes(one)
    try:
        return read_input_audio(one.audio.data, one.audio.format)
    except MediaError as error:
        raise ApiError(400, str(error), "invalid_audio", one.param) from None


def _timing(found: Sequence[EncodedMedia | Failed], seconds: float) -> str:
    """In the form that browsers show (W3C Server Timing)."""
    hits = sum(features.cached for features in found if isinstance(features, EncodedMedia))
    says = "hit" if hits == len(found) else "miss"
    return f"encoder;desc={says};dur={1000 * seconds:.1f}"
