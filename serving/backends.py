"""The workers of a service as one object: who answers a request, media encoded for an adapter, answers reranked.

The HTTP side has them behind handles, `kauli.serving.local` in its own process.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kauli.models.adapters.mixture import is_mixture
from kauli.models.requests import Media
from kauli.serving.events import Failed, MediaForm, Refused, not_served
from kauli.serving.routing import Catalogue, Route
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import TASKS, WORKERS

if TYPE_CHECKING:  # torch is not needed to reach workers behind handles
    from kauli.serving.workers.image_encoder import ImageEncoder
    from kauli.serving.workers.memory import MemoryWorker
    from kauli.serving.workers.transcriber import Transcriber

RERANK_TEMPERATURE = 0.8
"""Of the answers that are reranked, unless the request names one."""


@dataclass(frozen=True)
class Attachment:
    """An image or audio file in a conversation; `kind` is the worker that encodes it."""

    kind: str
    content: bytes
    param: str | None = None
    """Its place in the request, for errors."""


class Backends:
    """Worker -> name of a base -> what runs it, for the models of `catalogue`."""

    def __init__(self, workers: Mapping[str, Mapping[str, Any]], catalogue: Catalogue, args: ServeArgs) -> None:
        self.workers, self.catalogue, self.args = workers, catalogue, args
        self._forms: dict[str, dict[str, MediaForm]] = {}  # by name@version, which never changes

    def of(self, route: Route) -> Any:
        """The worker that answers."""
        return self.workers[route.worker][route.base]

    def running(self) -> list[tuple[str, Any]]:
        """All workers, each with the name of its base."""
        return [(name, backend) for found in self.workers.values() for name, backend in found.items()]

    def encoder(self, kind: str, form: MediaForm) -> "ImageEncoder | Transcriber":
        """The worker that encodes media of a kind. Raises Refused where none runs."""
        backend: ImageEncoder | Transcriber | None = next(iter(self.workers.get(kind, {}).values()), None)
        if backend is None:
            text = f"no {kind} encoder runs here: run `kauli fetch {form.encoder}` and restart the service"
            raise Refused(Failed(503, text, "unavailable", "model"))
        return backend

    async def route(self, task: str, model: str, language: str | None = None, allow_base: bool = False) -> Route:
        """Who answers a request to an endpoint of `task`.

        Raises Refused where the model can't do that, and what `Catalogue.route` raises.
        """
        worker = TASKS[task].worker
        own = self.catalogue.base_of(worker)
        if own is None and WORKERS[worker].missing:
            raise Refused(not_served(worker))
        route = await asyncio.to_thread(self.catalogue.route, model, language, allow_base)
        if route.worker != worker:
            if WORKERS[worker].several:
                paths = (path for row in TASKS.values() if row.worker == route.worker for path in row.paths)
                advice = f"send it to {' or '.join(dict.fromkeys(paths))}"
            else:
                advice = f"use model '{task if TASKS[task].bare and not TASKS[task].aligned else own}'"
            text = f"Model '{route.model}' cannot {TASKS[task].verb}; {advice}"
            raise Refused(Failed(400, text, "invalid_value", "model"))
        return route

    async def forms(self, route: Route, kinds: Iterable[str]) -> dict[str, MediaForm]:
        """What the adapter of `route` takes for each kind of media.

        Raises Refused where the adapter takes none of a kind, or no worker encodes it.
        """
        forms = {kind: await self._form(route, kind) for kind in dict.fromkeys(kinds)}
        for kind, form in forms.items():
            self.encoder(kind, form)
        return forms

    async def encode(
        self, forms: Mapping[str, MediaForm], attached: Sequence[Attachment]
    ) -> tuple[tuple[Media, ...], bool]:
        """Media for an adapter, and whether all were cached. Raises Refused where one can't be read."""
        encoders = {kind: self.encoder(kind, form) for kind, form in forms.items()}
        found = await asyncio.gather(*(encoders[one.kind].features(one.content, forms[one.kind]) for one in attached))
        media: list[Media] = []
        cached = True
        for one, features in zip(attached, found, strict=True):
            if isinstance(features, Failed):
                unreadable = features.code in ("invalid_image", "invalid_audio")
                raise Refused(replace(features, param=one.param) if unreadable else features)
            cached &= features.cached
            media.append(Media(one.kind, features.values))
        return tuple(media), cached

    async def nearest(self, image: bytes, texts: Sequence[str]) -> int:
        """The place of the text that is most similar to an image in the shared space. Raises Refused."""
        # A blank answer describes nothing, whatever its similarity.
        filled = [place for place, text in enumerate(texts) if text.strip()]
        if not filled:
            return 0
        vectors = await self.aligned().embed([image, *(texts[place] for place in filled)])
        if isinstance(vectors, Failed):
            raise Refused(vectors)
        return filled[int((vectors.values[1:] @ vectors.values[0]).argmax())]

    def aligned(self) -> "ImageEncoder":
        """The worker with the shared space. Raises Refused where none is served."""
        base = self.catalogue.base_of("image")
        if base is None:
            raise Refused(not_served("image", "rerank"))
        backend: ImageEncoder = self.workers["image"][base]
        return backend

    def memory(self) -> "MemoryWorker":
        """The worker with the memories. Raises Refused where none runs."""
        backend: MemoryWorker | None = next(iter(self.workers.get("memory", {}).values()), None)
        if backend is None:
            raise Refused(not_served("memory", "memory"))
        return backend

    async def _form(self, route: Route, kind: str) -> MediaForm:
        """What the adapter takes for this kind of media."""
        alone = route.adapter is None or is_mixture(route.adapter)  # adapters with connectors are not mixed
        forms = {} if alone else self._forms.get(route.adapter or "")
        if forms is None:
            assert route.adapter is not None
            found = await self.of(route).media_forms(route.adapter)
            if isinstance(found, Failed):
                raise Refused(found)
            forms = self._forms[route.adapter] = found
        if kind not in forms:
            text = f"'{route.model}' takes no {WORKERS[kind].media}: {await self._advice(kind)}"
            code = {"image": "no_pictures", "audio": "no_recordings"}.get(kind, f"no_{kind}")
            raise Refused(Failed(400, text, code, "model"))
        return forms[kind]

    async def _advice(self, kind: str) -> str:
        """Which adapter to use for media of a kind."""
        adapters = await asyncio.to_thread(self.catalogue.adapters)
        fitting = next((one.name for one in adapters if kind in one.card.encoders), None)
        if fitting:
            return f"use an adapter that does, such as '{fitting}'"
        return f"no adapter served here does; train one with `kauli train {WORKERS[kind].recipe}`"
