"""Voice to voice: a recording is transcribed, answered or translated, and the answer is spoken while it is written.

A composition of the deployments, each with the adapter of the language: the same as `/v1/audio/transcriptions`, then
`/v1/chat/completions` or `/v1/translate`, then `/v1/audio/speech`.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import regex

from kauli.models.media.decode import DecodedAudio
from kauli.models.requests import Message, SpeechRequest, TextRequest, TranscriptionRequest
from kauli.models.speech.chunking import as_text
from kauli.serving.backends import Backends
from kauli.serving.events import Failed, Piece, Refused
from kauli.serving.routing import Route
from kauli.serving.speech import Samples, Speech, spoken_by, unknown_voice
from kauli.serving.transcript import Transcript
from kauli.serving.translation import Translator

if TYPE_CHECKING:  # torch is not needed to reach a worker behind a handle
    from kauli.serving.workers.speaker import Speaker

_END = regex.compile(r"(?<=[.!?…][\"'»”)\]]*)\s+|(?<=[。！？।॥።؟۔])\s*|\n+")
_FEWEST = 12  # letters of a part of an answer that is spoken at once: shorter ones wait for what follows


@dataclass(frozen=True)
class Asked:
    """How a recording is to be answered."""

    language: str | None
    """Of the recording; None: detected."""
    target: str | None = None
    """The language to translate it into; None: it is answered in its own."""
    model: str = "text"
    """Of the answer, or of the translation."""
    transcriber: str = "transcribe"
    voice: str | None = None
    speed: float = 1.0
    instructions: str | None = None
    """The system's message to the model that answers."""
    max_tokens: int | None = None
    memory: tuple[str, ...] = ()
    """Names of the tenant's memories, for a translation."""
    tenant: str = "local"


@dataclass
class Dialogue:
    """What was heard and said, filled in as `events` goes on."""

    asked: Asked
    transcript: str = ""
    text: str = ""
    language: str | None = None
    spoken_language: str | None = None
    voice: str = ""
    seconds: float = 0.0
    """Of the speech so far."""
    unread: list[str] = field(default_factory=list)
    routes: dict[str, Route] = field(default_factory=dict)
    """transcribe, text or translate, and speak."""
    _translator: Translator | None = None

    async def events(self, backends: Backends, clip: DecodedAudio) -> AsyncGenerator[str | Samples]:
        """The transcript, then the parts of the answer: text as it is written, samples as they are spoken.

        Raises Refused, and what `Catalogue.route` raises.
        """
        asked = self.asked
        speaking = await backends.route("speak", "speak", asked.target or asked.language, allow_base=True)
        known = [one.id for one in await backends.of(speaking).voices()]
        if asked.voice is not None and asked.voice not in known:
            raise Refused(unknown_voice(asked.voice, known))
        if asked.language is not None:  # what can't be answered is refused before the work of hearing it
            await self._prepare(backends, asked.language)
        await self._hear(backends, clip)
        yield self.transcript
        if not self.transcript.strip():
            raise Refused(Failed(400, "nothing is spoken in the recording", "no_speech", "file"))
        self.spoken_language = asked.target or self.language
        if asked.language is None and asked.target is None:  # now it is known
            speaking = await backends.route("speak", "speak", self.spoken_language, allow_base=True)
        speaking = self.routes["speak"] = spoken_by(speaking, asked.voice)
        await self._prepare(backends, self.language)
        answer = self._translated() if self._translator else self._answered(backends)
        request = SpeechRequest("", self.spoken_language, asked.voice, asked.speed)
        async with aclosing(aloud(answer, backends.of(speaking), request, self, speaking.adapter)) as parts:
            async for part in parts:
                if isinstance(part, str):
                    self.text += part
                yield part

    async def _prepare(self, backends: Backends, language: str | None) -> None:
        """Find who answers."""
        asked = self.asked
        if asked.target is None:
            self.routes["text"] = await backends.route("text", asked.model, language, allow_base=True)
        elif language is None:
            text = "the language of the recording is not known: send language"
            raise Refused(Failed(400, text, "invalid_value", "language"))
        else:
            model = "translate" if asked.model == "text" else asked.model
            self._translator = await Translator.of(backends, model, language, asked.target, asked.memory, asked.tenant)
            self.routes["translate"] = self._translator.route

    async def _hear(self, backends: Backends, clip: DecodedAudio) -> None:
        asked, args = self.asked, backends.args
        route = await backends.route("transcribe", asked.transcriber, asked.language, allow_base=True)
        self.routes["transcribe"] = route
        request = TranscriptionRequest(None, route.language)
        found = Transcript(backends.of(route), request, route.adapter, args.deadline_s, guards=args.audio.guards)
        await found.cut(clip)
        async with aclosing(found.pieces(False)) as pieces:
            async for _ in pieces:
                pass
        self.transcript = as_text(found.segments)
        self.language = found.language or asked.language

    async def _translated(self) -> AsyncGenerator[str]:
        assert self._translator is not None
        yield (await self._translator.draft(self.transcript)).text

    async def _answered(self, backends: Backends) -> AsyncGenerator[str]:
        asked, route = self.asked, self.routes["text"]
        system = (Message("system", asked.instructions),) if asked.instructions else ()
        request = TextRequest(
            (*system, Message("user", self.transcript)), max_tokens=asked.max_tokens, language=route.language
        )
        async with aclosing(backends.of(route).stream(request, route.adapter)) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise Refused(event)
                if isinstance(event, Piece) and event.text:
                    yield event.text


async def aloud(
    answer: AsyncGenerator[str], worker: "Speaker", request: SpeechRequest, told: Dialogue, adapter: str | None = None
) -> AsyncGenerator[str | Samples]:
    """A text as it comes, and its sentences spoken meanwhile; `told` gets the voice and what could not be read.

    What has nothing to read, such as a line of stars, is passed over. Raises Refused.
    """
    ready: asyncio.Queue[str | Samples | Exception | None] = asyncio.Queue()
    sentences: asyncio.Queue[str | None] = asyncio.Queue()

    async def write() -> None:
        held = ""
        async with aclosing(answer):
            async for piece in answer:
                ready.put_nowait(piece)
                *whole, held = _parts(held + piece)
                for one in whole:
                    sentences.put_nowait(one)
        sentences.put_nowait(held)
        sentences.put_nowait(None)

    async def speak() -> None:
        number = 0
        while (sentence := await sentences.get()) is not None:
            if not any(letter.isalnum() for letter in sentence):
                continue
            said = Speech(worker, replace(request, text=sentence, seed=request.seed + number), adapter)
            number += 1
            try:
                await said.begin()
            except Refused as refusal:
                if refusal.failed.param != "input":
                    raise
                told.unread.append(sentence.strip())
                continue
            told.voice = said.voice.id
            told.unread += said.unread
            async for samples in said.sentences():
                ready.put_nowait(samples)
            told.seconds += said.seconds

    async def both() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(write())
                group.create_task(speak())
        except* Exception as errors:
            ready.put_nowait(errors.exceptions[0])
        ready.put_nowait(None)

    task = asyncio.create_task(both())
    try:
        while (part := await ready.get()) is not None:
            if isinstance(part, Exception):
                raise part
            yield part
    finally:
        task.cancel()


def _parts(text: str) -> list[str]:
    """The sentences of a text that are complete, and the rest; a short one goes with what follows."""
    found, begin = [], 0
    for match in _END.finditer(text):
        if sum(letter.isalnum() for letter in text[begin : match.end()]) >= _FEWEST and match.end() < len(text):
            found.append(text[begin : match.end()])
            begin = match.end()
    return [*found, text[begin:]]
