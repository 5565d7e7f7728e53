"""A text that is spoken: its sentences as they come, their words with times in the whole. For HTTP and the command."""

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kauli.models.adapters.card import VoiceReference
from kauli.models.documents.tiers import textgrid_of
from kauli.models.errors import UsageError, nearest
from kauli.models.media.encode import RATE
from kauli.models.requests import SpeechRequest, Voice
from kauli.models.speech.chunking import Segment
from kauli.models.speech.espeak import espeak_languages
from kauli.models.speech.subtitles import as_srt, as_vtt, cues
from kauli.models.text.detection import detect
from kauli.serving.events import Failed, Refused, SpeechStarted
from kauli.serving.routing import Adapter, Route, served_task

if TYPE_CHECKING:  # torch is not needed to reach a worker behind a handle
    from kauli.serving.workers.speaker import Speaker

TIMES = {"vtt": "text/vtt", "srt": "application/x-subrip", "textgrid": "text/plain"}
"""Formats of the words' times alone -> media type."""

ESPEAK = "espeak"
"""The voice that is no model's."""

_UNKNOWN = VoiceReference(consent="not recorded", synthetic=0)
_TELLING = 30  # characters of a text in Latin letters whose language is detected

Samples = npt.NDArray[np.float32]


class Speech:
    """What a worker says to one request."""

    def __init__(self, worker: "Speaker", request: SpeechRequest, adapter: str | None = None) -> None:
        self._worker, self._request, self._adapter = worker, request, adapter
        self.voice: Voice
        """Known after `begin`, as are `language` and `unread`."""
        self.language = ""
        self.unread: tuple[str, ...] = ()
        """Letters of the text that are not read."""
        self.segments: list[Segment] = []
        """The sentences that were spoken so far, with their words."""
        self.seconds = 0.0
        self._events: AsyncGenerator[Any] | None = None

    async def begin(self) -> None:
        """Have the text read, up to its first sound. Raises Refused."""
        voices = await self._worker.voices()
        named = self._request.voice
        found = [one for one in voices if named is None or one.id == named]
        if not found:
            raise Refused(unknown_voice(str(named), [one.id for one in voices]))
        self.voice = found[0]
        self._events = self._worker.stream(self._request, self._adapter)
        started = await anext(self._events)
        if isinstance(started, Failed):
            raise Refused(started)
        assert isinstance(started, SpeechStarted)
        self.language, self.unread = started.language, started.unread

    async def sentences(self) -> AsyncGenerator[Samples]:
        """The samples (n,) of each sentence at `RATE`. Raises Refused."""
        assert self._events is not None
        async with aclosing(self._events) as events:
            async for event in events:
                if isinstance(event, Failed):
                    raise Refused(event)
                begin, self.seconds = self.seconds, self.seconds + len(event.samples) / RATE
                words = tuple(replace(one, start=begin + one.start, end=begin + one.end) for one in event.words)
                self.segments.append(Segment(begin, self.seconds, event.text, words))
                yield event.samples

    async def whole(self) -> Samples:
        """All samples (n,). Raises Refused."""
        found = [one async for one in self.sentences()]
        return np.concatenate([np.zeros(0, np.float32), *found])

    def times(self, form: str) -> str:
        """When each word is spoken, in a format of `TIMES`."""
        if form in ("vtt", "srt"):
            shown = cues(self.segments)
            return as_vtt(shown) if form == "vtt" else as_srt(shown)
        if form == "textgrid":
            spans = [(one.start, one.end, one.text) for segment in self.segments for one in segment.words]
            return textgrid_of(spans, self.seconds, tier="words").decode()
        raise UsageError(f"times of words can't be written as '{form}': use {', '.join(TIMES)}")

    def words(self) -> list[dict[str, Any]]:
        """Each word with its times in seconds."""
        return [
            {"word": one.text, "start": round(one.start, 3), "end": round(one.end, 3)}
            for segment in self.segments for one in segment.words
        ]  # fmt: skip


def named_voice(model: str, voice: str | None, adapters: Collection[str]) -> tuple[str, str | None]:
    """Model and voice of a request, where its voice may be the name of an adapter that speaks."""
    if model == "speak" and voice is not None and voice.partition("@")[0] in adapters:
        return voice, None
    return model, voice


def adapter_voices(adapters: Iterable[Adapter]) -> list[tuple[Voice, str]]:
    """The voices that adapters of the task `speak` add, and their versions as NAME@VERSION."""
    return [
        (
            Voice(one.public, ", ".join(one.card.language), one.card.licence, known.consent, known.synthetic == 1),
            one.card.spec,
        )
        for one in adapters if served_task(one.card) == "speak"
        if (known := one.card.voice or _UNKNOWN)
    ]  # fmt: skip


def spoken_by(route: Route, voice: str | None) -> Route:
    """Who speaks, where a voice is named: eSpeak takes no adapter."""
    return replace(route, adapter=None) if voice == ESPEAK else route


def spoken_language(text: str) -> str | None:
    """The language of a text that names none, among those of eSpeak; None for one too short to tell.

    Raises SourceUnavailable where what tells languages apart can't be fetched.
    """
    if len(text) < _TELLING and text.isascii():
        return None
    found = detect(text, espeak_languages())
    return found[0][0] if found else None


def unknown_voice(name: str, known: Sequence[str]) -> Failed:
    """The error of a voice that is not there."""
    text = f"there is no voice '{name}'.{nearest(name, known)} Voices: {', '.join(known)}"
    return Failed(400, text, "invalid_value", "voice")


def provenance(voice: str, language: str) -> str:
    """What is written into every audio file that tells who speaks."""
    return f"AI-generated speech by Kauli; voice {voice}; language {language}"
