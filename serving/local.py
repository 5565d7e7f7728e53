"""Answers as the service would give, in this process: the same routing, workers, reranking and cuts of long audio."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base, known_bases
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, display_name, fallback_chain
from kauli.models.media.decode import DecodedAudio
from kauli.models.progress import bar, note
from kauli.models.requests import NO_REPEAT, TextRequest, TranscriptionRequest
from kauli.models.tasks import resolve
from kauli.serving.backends import RERANK_TEMPERATURE, Attachment, Backends
from kauli.serving.events import Failed, MediaForm, Piece, Refused, Started
from kauli.serving.routing import Catalogue, Route, choose_bases, newest_cards, public_name, served_task
from kauli.serving.settings import load_settings
from kauli.serving.tasks import TASKS, WORKERS
from kauli.serving.transcript import Transcript

_UNLIMITED = 1_000_000  # of seconds, tokens and queued requests: nobody else waits

T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """An answer in text, and the tokens of all candidates."""

    text: str
    route: Route
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    prompt: str | None = None


class Local(Backends):
    """The workers of one command, loaded when they are needed; `close` ends them."""

    def __init__(self, storage: str) -> None:
        args = load_settings(
            storage=storage, host="127.0.0.1", max_queue=_UNLIMITED, max_context=_UNLIMITED, deadline_s=_UNLIMITED
        )
        self.registry = Registry(storage)
        self._loaded: dict[str, dict[str, Any]] = {}
        self._open = ExitStack()
        super().__init__(self._loaded, Catalogue(self.registry, {}), args)

    def close(self) -> None:
        """End the workers' threads."""
        self._open.close()

    def run(self, waiting: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; what it refuses is a UsageError or, where the service failed, a KauliError."""
        try:
            return asyncio.run(waiting)
        except Refused as refusal:
            failed = refusal.failed
            raise (UsageError if failed.status < 500 else KauliError)(failed.message) from None

    def choose(self, task: str, model: str, language: str | None, allow_base: bool = False) -> Route:
        """Who answers, as in the service; its worker is loaded. Raises UsageError and KauliError."""
        worker = TASKS[task].worker
        bases = self._bases(task, model, check_tag(language) if language else None)
        self.catalogue = Catalogue(self.registry, {worker: bases})
        named = model not in TASKS and _is_base(model)
        route = self.catalogue.route(public_name(bases[0]) if named else model, language, allow_base)
        self.load(worker, next(base for base in bases if public_name(base) == route.base))
        return route

    def load(self, worker: str, base: Base) -> Any:
        """The worker on a base, loaded once."""
        found = self._loaded.setdefault(worker, {})
        if public_name(base) not in found:
            running = resolve(WORKERS[worker].build)(self.args, base, True)
            found[public_name(base)] = self._open.enter_context(closing(running))
        return found[public_name(base)]

    def encoder(self, kind: str, form: MediaForm) -> Any:
        """The worker of the encoder that an adapter was trained with."""
        return self.load(kind, self._find(kind, form.encoder))

    def align(self, base: str) -> None:
        """Load the shared space of a base, for `aligned`."""
        found = self._find("image", base)
        self.catalogue = Catalogue(self.registry, {"image": [found]})
        self.load("image", found)

    async def answer(
        self, route: Route, request: TextRequest, write: Callable[[str], None] | None = None
    ) -> tuple[list[str], Answer]:
        """All answers to a request, and the first with what they cost together; `write` gets the text as it comes."""
        texts, finish, prompt_tokens, tokens = [""] * request.n, None, 0, 0
        async with aclosing(self.of(route).stream(request, route.adapter, write is None)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise Refused(event)
                if isinstance(event, Started):
                    prompt_tokens = event.prompt_tokens
                if isinstance(event, Piece):
                    texts[event.index] += event.text
                    tokens += event.tokens
                    finish = event.finish or finish
                    if write:
                        write(event.text)
        return texts, Answer(texts[0], route, finish, prompt_tokens, tokens)

    def _bases(self, task: str, model: str, tag: str | None) -> list[Base]:
        """The bases among which `model` is routed, without fetching more than it needs."""
        worker = TASKS[task].worker
        row = WORKERS[worker]
        if model in TASKS and TASKS[model].worker == worker:
            cards = [card for card in newest_cards(self.registry) if served_task(card) == model]
            if not cards and not TASKS[model].bare:
                advice = TASKS[model].advice.format(tag=tag or "sw", name=(tag or "sw").lower())
                raise UsageError(f"no adapter in {self.args.storage} can {TASKS[model].verb}. {advice}")
            if row.several:
                return choose_bases(self.registry, tasks=(model,))
            fitting = (card.base.name for one in fallback_chain(tag or "und") for card in cards if one in card.language)
            return [self._find(worker, next(fitting, self.args.worker(worker).base))]
        if model not in TASKS and _is_base(model):
            return [self._find(worker, model)]
        card = None if model in TASKS else self.registry.card(model)
        name = served_task(card) if card else None
        if card is None or name is None or TASKS[name].worker != worker:
            shown = card.spec if card else model
            raise UsageError(f"Model '{shown}' cannot {TASKS[task].verb}; use model '{task}' (kauli adapters list)")
        return [self._find(worker, card.base.name)]

    def _find(self, worker: str, base: str) -> Base:
        row = WORKERS[worker]
        # A language model under a non-commercial licence needs a recipe or a setting that allows it.
        return find_base(base, task=row.base_task, allow_noncommercial=not row.several)


def generate(
    storage: str, prompt: str, model: str, language: str | None, write: Callable[[str], None] | None, **options: Any
) -> Answer:
    """The answer to one prompt; `options` are fields of `TextRequest`. Raises UsageError and KauliError."""
    with closing(Local(storage)) as local:
        route = local.choose("text", model, language)
        note(f"{route.model} answers{_in_language(route)}")
        return local.run(local.answer(route, TextRequest.of_prompt(prompt, **options), write))[1]


def describe(
    storage: str, attached: Sequence[Attachment], prompt: str | None, model: str, language: str | None, *,
    rerank: int, temperature: float | None, **options: Any,
) -> Answer:  # fmt: skip
    """The answer about an image, audio or both; `prompt` None is the instruction that the adapter was trained with.

    With `rerank` N over 1, N candidates are generated; the one most similar to the image, in the space of the image
    encoder's default base, is the answer. Raises UsageError and KauliError.
    """
    with closing(Local(storage)) as local:
        route = local.choose("describe", model, language)
        card = local.registry.card(route.adapter) if route.adapter else None
        tag = language or route.language or (card.language[0] if card else None)
        route = replace(route, language=tag)
        if prompt is None and card and card.prompt.instruction:
            prompt = card.prompt.instruction.replace("{language}", display_name(tag or "und"))

        async def answer() -> Answer:
            forms = await local.forms(route, [one.kind for one in attached])
            note(f"{route.model} answers{_in_language(route)}")
            media, _ = await local.encode(forms, attached)
            warmth = temperature if temperature is not None else RERANK_TEMPERATURE if rerank > 1 else 0.0
            request = TextRequest.of_prompt(prompt, media, temperature=warmth, n=rerank, no_repeat=NO_REPEAT, **options)
            texts, found = await local.answer(route, request)
            best = 0
            if rerank > 1:
                local.align(local.args.image.base)
                best = await local.nearest(next(one.content for one in attached if one.kind == "image"), texts)
            return replace(found, text=texts[best].strip(), prompt=prompt)

        return local.run(answer())


def transcribe(
    storage: str, clips: Sequence[DecodedAudio], model: str, language: str | None, prompt: str | None, words: bool
) -> tuple[Route, list[Transcript]]:
    """The transcripts of audio files, computed together, and who made them; without a fitting adapter by the base.

    Raises UsageError and KauliError.
    """
    with closing(Local(storage)) as local:
        route = local.choose("transcribe", model, language, allow_base=True)
        total = sum(clip.seconds for clip in clips)
        note(f"{route.model} transcribes {total:.1f} s{_in_language(route)}")
        request = TranscriptionRequest(None, route.language, prompt, words=words)

        async def finish(transcript: Transcript, advance: Callable[[], None]) -> None:
            async with aclosing(transcript.pieces(False, advance)) as pieces:
                async for _ in pieces:
                    pass

        async def answer() -> list[Transcript]:
            at_once = 4 * local.args.audio.batch
            transcripts = [
                Transcript(local.of(route), request, route.adapter, _UNLIMITED, at_once=at_once) for _ in clips
            ]
            for transcript, clip in zip(transcripts, clips, strict=True):
                await transcript.cut(clip)
            with bar("Transcribing", sum(len(one.spans) for one in transcripts)) as advance:
                await asyncio.gather(*(finish(one, advance) for one in transcripts))
            return transcripts

        return route, local.run(answer())


def embed(storage: str, base: str, inputs: Sequence[str | bytes]) -> np.ndarray:
    """(N, dim) texts, and images as their encoded bytes, in the shared space. Raises UsageError and KauliError."""
    with closing(Local(storage)) as local:
        local.align(base)
        found = local.run(local.aligned().embed(inputs))
        if isinstance(found, Failed):
            raise UsageError(found.message)
        return found.values


def _is_base(model: str) -> bool:
    return model == "debug" or "/" in model or model in known_bases()


def _in_language(route: Route) -> str:
    return f" ({route.language})" if route.language else ""
