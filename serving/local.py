"""Answers as the service would give, in this process: the same routing, workers, reranking and cuts of long audio."""

import asyncio
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np

from kauli.models.adapters.mixture import card_of
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import Base, find_base, known_bases
from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, display_name, fallback_chain
from kauli.models.media.decode import DecodedAudio
from kauli.models.progress import bar
from kauli.models.requests import SpeechRequest, TextRequest, TranscriptionRequest
from kauli.models.speech.guards import Guards
from kauli.models.tasks import resolve
from kauli.serving.backends import RERANK_TEMPERATURE, Attachment, Backends
from kauli.serving.dialogue import Asked, Dialogue
from kauli.serving.events import Event, Failed, MediaForm, Piece, Ranked, Refused, Started
from kauli.serving.routing import Catalogue, Route, choose_bases, newest_cards, public_name, served_task
from kauli.serving.settings import load_settings
from kauli.serving.speech import Speech, spoken_by
from kauli.serving.tasks import TASKS, WORKERS, task_of_base
from kauli.serving.transcript import Transcript
from kauli.serving.translation import Translator

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
    """The workers of one command or program, loaded when they are needed and kept until `close`."""

    def __init__(self, storage: str) -> None:
        args = load_settings(
            storage=storage, host="127.0.0.1", max_queue=_UNLIMITED, max_context=_UNLIMITED, deadline_s=_UNLIMITED
        )
        self.registry = Registry(storage)
        self._loaded: dict[str, dict[str, Any]] = {}
        self._open = ExitStack()
        # In a thread of its own: a notebook's cells run inside a loop, and asyncio allows one a thread.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="answers", daemon=True)
        self._thread.start()
        super().__init__(self._loaded, Catalogue(self.registry, {}), args)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads, and let go of the weights."""
        self._open.close()
        self._loaded.clear()
        if self._thread.is_alive():
            self.run(self._loop.shutdown_asyncgens())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def run(self, waiting: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine; what it refuses is a UsageError or, where the service failed, a KauliError."""
        if self._loop.is_closed():
            waiting.close()
            raise UsageError("the model is closed: load it again")
        found = asyncio.run_coroutine_threadsafe(waiting, self._loop)
        try:
            return found.result()
        except Refused as refusal:
            failed = refusal.failed
            raise (UsageError if failed.status < 500 else KauliError)(failed.message) from None
        finally:
            found.cancel()  # where Ctrl-C ended the waiting

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
        request = replace(request, language=route.language)
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

    def generate(self, route: Route, request: TextRequest, write: Callable[[str], None] | None = None) -> Answer:
        """The answer to a request; `write` gets the text as it comes. Raises UsageError and KauliError."""
        self._check(route, "text")
        return self.run(self.answer(route, request, write))[1]

    def stream(self, route: Route, request: TextRequest) -> Iterator[str]:
        """The text of one answer as it comes; leaving the iteration ends it. Raises UsageError and KauliError."""
        self._check(route, "text")
        events: AsyncGenerator[Event] = self.of(route).stream(request, route.adapter)
        try:
            while (event := self.run(_next(events))) is not None:
                if isinstance(event, Piece):
                    yield event.text
        finally:
            if not self._loop.is_closed() and not sys.is_finalizing():  # then the loop's thread has ended
                ending = asyncio.run_coroutine_threadsafe(events.aclose(), self._loop)
                if threading.current_thread() is not self._thread:  # there an abandoned iteration may be collected
                    ending.result()

    def describe(
        self, route: Route, attached: Sequence[Attachment], prompt: str | None, *,
        rerank: int = 1, temperature: float | None = None, no_repeat: int | None = None, max_tokens: int = 64,
        **options: Any,
    ) -> Answer:  # fmt: skip
        """The answer about an image, audio or both; `prompt` None is the instruction that the adapter was trained with.

        With `rerank` N over 1, N candidates are generated; the one most similar to the image, in the space of the image
        encoder's default base, is the answer. Raises UsageError and KauliError.
        """
        self._check(route, "describe")
        card = self.registry.card(route.adapter) if route.adapter else None
        tag = route.language or (card.language[0] if card else None)
        route = replace(route, language=tag)
        if prompt is None and card and card.prompt.instruction:
            prompt = card.prompt.instruction.replace("{language}", display_name(tag or "und"))

        async def answer() -> Answer:
            media, _ = await self.encode(await self.forms(route, [one.kind for one in attached]), attached)
            warmth = temperature if temperature is not None else RERANK_TEMPERATURE if rerank > 1 else 0.0
            request = TextRequest.of_prompt(
                prompt, media, temperature=warmth, n=rerank, no_repeat=no_repeat, max_tokens=max_tokens, **options
            )
            texts, found = await self.answer(route, request)
            best = 0
            if rerank > 1:
                self.align(self.args.image.base)
                best = await self.nearest(next(one.content for one in attached if one.kind == "image"), texts)
            return replace(found, text=texts[best].strip(), prompt=prompt)

        return self.run(answer())

    def transcribe(
        self, route: Route, clips: Sequence[DecodedAudio], prompt: str | None = None, words: bool = False,
        guards: Guards | None = None, **options: Any,
    ) -> list[Transcript]:  # fmt: skip
        """The transcripts of audio files, computed together; `options` are those of `TranscriptionRequest`.

        Raises UsageError and KauliError.
        """
        self._check(route, "transcribe")
        request = TranscriptionRequest(None, route.language, prompt, words=words, **options)

        async def finish(transcript: Transcript, advance: Callable[[], None]) -> None:
            async with aclosing(transcript.pieces(False, advance)) as pieces:
                async for _ in pieces:
                    pass

        async def answer() -> list[Transcript]:
            at_once = 4 * self.args.audio.batch
            transcripts = [
                Transcript(
                    self.of(route), request, route.adapter, _UNLIMITED, at_once=at_once,
                    guards=guards or self.args.audio.guards, certified=self.catalogue.certificate(route),
                )
                for _ in clips
            ]  # fmt: skip
            for transcript, clip in zip(transcripts, clips, strict=True):
                await transcript.cut(clip)
            with bar("Transcribing", sum(len(one.spans) for one in transcripts)) as advance:
                await asyncio.gather(*(finish(one, advance) for one in transcripts))
            return transcripts

        return self.run(answer())

    def speak(self, route: Route, request: SpeechRequest) -> tuple[Speech, np.ndarray]:
        """What was said, and its samples (n,) at `kauli.models.media.encode.RATE`. Raises UsageError and KauliError."""
        self._check(route, "speak")

        async def answer() -> tuple[Speech, np.ndarray]:
            said = Speech(self.of(route), request, spoken_by(route, request.voice).adapter)
            await said.begin()
            return said, await said.whole()

        return self.run(answer())

    def dialogue(self, asked: Asked, clip: DecodedAudio) -> tuple[Dialogue, np.ndarray]:
        """What was heard and said, and its samples (n,) at `kauli.models.media.encode.RATE`.

        Raises UsageError and KauliError.
        """
        tag = check_tag(asked.language) if asked.language else None
        task = "translate" if asked.target else "text"
        model = task if asked.model == "text" else asked.model
        self.catalogue = Catalogue(
            self.registry,
            {
                "audio": self._bases("transcribe", asked.transcriber, tag),
                "text": self._bases(task, model, tag),
                "voice": self._bases("speak", "speak", asked.target or tag),
            },
        )
        told = Dialogue(asked)

        async def answer() -> np.ndarray:
            async with aclosing(told.events(self, clip)) as events:
                parts = [part async for part in events if not isinstance(part, str)]
            return np.concatenate([np.zeros(0, np.float32), *parts])

        return told, self.run(answer())

    def of(self, route: Route) -> Any:
        """The worker that answers, loaded when it is asked for."""
        if route.base not in self._loaded.get(route.worker, {}):
            self.load(route.worker, self.catalogue.bases()[route.base])
        return super().of(route)

    def translator(self, model: str, source: str, target: str, memories: Sequence[str] = ()) -> Translator:
        """What translates between two languages, loaded: an adapter, its base, and the memories' embedder if needed.

        Raises UsageError and KauliError.
        """
        bases = self._bases("translate", model, check_tag(target))
        self.catalogue = Catalogue(self.registry, {"text": bases})
        translator = self.run(Translator.of(self, model, source, target, memories))
        self.load("text", next(one for one in bases if public_name(one) == translator.route.base))
        if memories:
            self.load("memory", self._find("memory", self.args.memory.base))
        return translator

    def embed(self, route: Route, inputs: Sequence[str | bytes]) -> np.ndarray:
        """(N, dim) texts, and images as their encoded bytes, in the shared space. Raises UsageError and KauliError."""
        self._check(route, "embed")
        values: np.ndarray = self._found(self.of(route).embed(inputs)).values
        return values

    def classify(self, route: Route, inputs: Sequence[str | bytes], classes: Sequence[str] = ()) -> list[Ranked]:
        """The classes of each input by an adapter's head or, without an adapter, by the names in `classes`.

        Raises UsageError and KauliError.
        """
        self._check(route, "classify")
        if bool(classes) == bool(route.adapter):
            raise UsageError(
                f"'{route.adapter}' has its own classes: leave classes out, or load '{route.base}'" if classes else
                f"'{route.base}' needs classes to choose from, or load an adapter with a head"
            )  # fmt: skip
        worker = self.of(route)
        found: list[Ranked] = self._found(
            worker.classify(route.adapter, inputs) if route.adapter else worker.classify_as(classes, inputs)
        )
        return found

    def meant(self, model: str) -> tuple[str, str]:
        """The task by which `model` answers, and its exact name (`name@version` of an adapter, a mixture's key).

        A base that has no entry in bases.yaml is one for text. Raises UsageError for an unknown adapter.
        """
        if model in TASKS:
            return model, model
        if _is_base(model):
            takes = known_bases()[model].tasks if model in known_bases() else ("text",)
            return task_of_base(takes), model
        card = card_of(self.registry, model)
        task = served_task(card)
        if task is None:
            raise UsageError(f"adapter '{card.spec}' is for the task '{card.task}', which answers no requests")
        return task, card.spec

    def _found(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        """The result of a worker's call. Raises UsageError and KauliError."""

        async def found() -> Any:
            result = await waiting
            if isinstance(result, Failed):
                raise Refused(result)
            return result

        return self.run(found())

    def _check(self, route: Route, task: str) -> None:
        """Raise UsageError where the worker that answers `route` can't do `task`."""
        if route.worker != TASKS[task].worker:
            raise _cannot(route.model, task)

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
            tags = fallback_chain(tag) if tag else ()
            fitting = (card.base.name for one in tags for card in cards if one in card.language)
            return [self._find(worker, next(fitting, self.args.worker(worker).base))]
        if model not in TASKS and _is_base(model):
            return [self._find(worker, model)]
        card = None if model in TASKS else card_of(self.registry, model)
        name = served_task(card) if card else None
        if card is None or name is None or TASKS[name].worker != worker:
            raise _cannot(card.spec if card else model, task)
        return [self._find(worker, card.base.name)]

    def _find(self, worker: str, base: str) -> Base:
        row = WORKERS[worker]
        # A language model under a non-commercial licence needs a recipe or a setting that allows it.
        return find_base(base, task=row.base_task, allow_noncommercial=not row.several)


def _is_base(model: str) -> bool:
    return model == "debug" or "/" in model or model in known_bases()


def _cannot(model: str, task: str) -> UsageError:
    return UsageError(f"Model '{model}' cannot {TASKS[task].verb}; use model '{task}' (kauli adapters list)")


async def _next(events: AsyncGenerator[Event]) -> Event | None:
    """The next event, None at the end. Raises Refused."""
    event = await anext(events, None)
    if isinstance(event, Failed):
        raise Refused(event)
    return event


def in_language(route: Route) -> str:
    """The language of a route for a note."""
    return f" ({route.language})" if route.language else ""
