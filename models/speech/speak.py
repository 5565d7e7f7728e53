"""The task `speak`: sentences become sound, by the voices of a VITS base and by eSpeak's own.

A voice that reads phonemes speaks every language that eSpeak has, with the accent of its recordings: sounds that it was
not trained on are replaced by the nearest (`kauli.models.speech.sounds`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kauli.models.bases.find import Base
from kauli.models.engine.precision import place
from kauli.models.errors import UsageError, nearest
from kauli.models.languages import check_tag, display_name
from kauli.models.media.encode import RATE
from kauli.models.media.resample import resampled
from kauli.models.requests import SpeechRequest, Spoken, Voice, Word
from kauli.models.speech.espeak import SPEED, espeak, espeak_voice
from kauli.models.speech.reading import PRONOUNCED, Reading, Sentence, read, without_foreign
from kauli.models.speech.sounds import Symbols, foreign
from kauli.models.speech.vits_adapter import VoiceAdapter, VoiceMixer, layers, read_adapter
from kauli.models.speech.vits_model import (
    Latent,
    Utterance,
    latents,
    read_vits,
    samples_per_frame,
    sound,
    voice_facts,
)
from kauli.models.speech.watermark import watermark

ESPEAK = Voice(
    "espeak", "mul", "GPL-3.0-or-later (the program)", "none needed: a formant synthesiser", synthetic=True
)  # fmt: skip
"""eSpeak's voice: rough, and often easier to understand than a voice that never heard the language."""
SLOWEST, FASTEST = 0.25, 4.0
_ESPEAK_PACE = 175  # words a minute at speed 1
_ESPEAK_PACES = (80, 450)  # that it allows
_FADE = 0.005  # seconds at the end of a sentence, which may end in mid-sound


@dataclass(frozen=True)
class Job:
    """A sentence to speak, as a request asks."""

    sentence: Sentence
    request: SpeechRequest
    language: str
    number: int = 0
    """Of the sentence in its text: each has noise of its own."""
    adapter: str | None = None
    """The key of the adapter that speaks."""


class SpeakTask:
    """A loaded base with its voices, and any number of adapters. Belongs to one thread at a time."""

    def __init__(self, base: Base, model: Any, symbols: Symbols, voices: dict[str, int], slots: int) -> None:
        """`voices`: each voice's name and its number in the model."""
        self.base, self.model, self.symbols, self.slots = base, model, symbols, slots
        self._rate = int(model.config.sampling_rate)
        self._layers = layers(model)
        self._mixer = VoiceMixer(model)
        self._read: dict[str | None, Symbols] = {None: symbols}
        self._numbers = voices
        language = base.languages[0] if base.languages else "mul"
        consent = f"as its licence says: {base.licence}"
        made = [Voice(name, language, base.licence, consent, synthetic=False) for name in voices]
        self.voices: tuple[Voice, ...] = (*made, ESPEAK)

    @classmethod
    def load(
        cls, base: Base, device: str | None = None, dtype: torch.dtype | None = None, slots: int = 8, **options: Any
    ) -> Self:
        """The base from its folder, in fp32 whatever `dtype` says. Raises UsageError for a folder that can't be read.

        `slots`: sentences that are computed at a time.
        """
        return cls.of(base, read_vits(base.folder, place(device, dtype)[0]), slots)

    @classmethod
    def of(cls, base: Base, model: Any, slots: int = 8) -> Self:
        """The same on a base that is read already."""
        facts = voice_facts(base.folder)
        symbols = Symbols.read(base.folder, base.name)
        speakers = facts.get("speakers") or {}
        if not speakers:
            count = int(model.config.num_speakers)
            name = facts.get("name") or base.name.rpartition("/")[2]
            speakers = {name: 0} if count < 2 else {f"{name}-{number}": number for number in range(count)}
        return cls(base, model, symbols, speakers, slots)

    def voice(self, name: str | None) -> Voice:
        """The voice called `name`. Raises UsageError that lists the voices."""
        found = next((one for one in self.voices if name is None or one.id == name), None)
        if found is None:
            known = [one.id for one in self.voices]
            raise UsageError(f"there is no voice '{name}'.{nearest(str(name), known)} Voices: {', '.join(known)}")
        return found

    def read_adapter(self, folder: Path) -> VoiceAdapter:
        """The contents of a checked adapter folder, for `put_adapter`. Raises KauliError where it does not fit."""
        return read_adapter(folder, self.model, self.symbols.numbers, self._layers)

    def put_adapter(self, key: str, adapter: VoiceAdapter) -> None:
        """Load what `read_adapter` returned under a key (such as `speak-be@3`)."""
        if key in self._mixer:
            raise ValueError(f"adapter {key!r} is loaded already")
        self._mixer.add(key, adapter)
        self._read[key] = self.symbols.with_trained(adapter.settings.symbols)

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    def remove_adapter(self, key: str) -> None:
        """Unload an adapter, which no sentence may be using."""
        self._mixer.remove(key)
        del self._read[key]

    def adapters(self) -> list[str]:
        """The keys of the loaded adapters."""
        return self._mixer.keys()

    def read(self, request: SpeechRequest, adapter: str | None = None) -> tuple[Reading, str]:
        """The sentences of a text as a loaded adapter or the base reads it, and its language.

        Raises UsageError for an unknown voice, a speed out of range, and what `reading.read` refuses.
        """
        voice = self.voice(request.voice)
        if not SLOWEST <= request.speed <= FASTEST:
            raise UsageError(f"speed {request.speed:g} is out of range: from {SLOWEST:g} to {FASTEST:g}")
        if voice is ESPEAK and (request.lexicon or PRONOUNCED.search(request.text)):
            raise UsageError("the voice espeak takes no pronunciations: choose another voice, or leave them out")
        language = check_tag(request.language or self.native(voice))
        self.check_language(language, voice)
        symbols = _ANY if voice is ESPEAK and not self.symbols.phonemes else self._read[adapter]
        return read(request.text, language, symbols, dict(request.lexicon)), language

    def speak(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Spoken]]:
        """(its place among the jobs, a sentence as marked sound), each as soon as it is made."""
        own = [at for at, job in enumerate(jobs) if self.voice(job.request.voice) is not ESPEAK]
        made = latents(self.model, [self._utterance(jobs[at]) for at in own], self._mixer) if own else []
        for at in sorted(set(range(len(jobs))) - set(own)):
            yield at, self._by_espeak(jobs[at])
        for at, latent in zip(own, made, strict=True):
            yield at, self._finished(jobs[at], latent)

    def _utterance(self, job: Job) -> Utterance:
        voice = self.voice(job.request.voice)
        seed, tokens = job.request.seed * 65_536 + job.number, self.symbols.tokens(job.sentence.symbols)
        if job.adapter is not None:
            noise = self._mixer[job.adapter].settings.noise
            return Utterance(tokens, job.request.speed, seed, self._numbers[voice.id], noise, adapter=job.adapter)
        own = not self.symbols.phonemes or self.symbols.native(job.language)
        return Utterance(
            tokens, job.request.speed * (1.0 if own else foreign()["pace"]), seed, self._numbers[voice.id],
            noise=None if own else foreign()["noise"],
        )  # fmt: skip

    def _finished(self, job: Job, latent: Latent) -> Spoken:
        samples = sound(self.model, latent).float().cpu().numpy()
        scale = samples_per_frame(self.model) / self._rate
        ends = np.cumsum(latent.durations.cpu().numpy()) * scale
        starts = ends - latent.durations.cpu().numpy() * scale
        first, words = self.symbols.first, []
        for word in job.sentence.words:
            begin, last = first + 2 * word.begin, first + 2 * (word.end - 1)
            words.append(Word(word.text, round(float(starts[begin]), 3), round(float(ends[last]), 3)))
        return _marked(samples, self._rate, job.sentence, tuple(words))

    def _by_espeak(self, job: Job) -> Spoken:
        pace = min(max(round(_ESPEAK_PACE * job.request.speed), _ESPEAK_PACES[0]), _ESPEAK_PACES[1])
        text = without_foreign(job.sentence.text, job.language)
        found = espeak().speak(text, espeak_voice(job.language), {SPEED: pace})
        words, seconds = list[Word](), len(found.samples) / found.rate
        for word, begin, end in _places(job.sentence):
            times = [time for place, time in found.words if begin <= place < end]
            words.append(Word(word, times[0] if times else words[-1].start if words else 0.0, seconds))
        ends = [*(word.start for word in words[1:]), seconds]
        words = [replace(word, end=end) for word, end in zip(words, ends, strict=True)]
        return _marked(found.samples, found.rate, job.sentence, tuple(words))

    @staticmethod
    def native(voice: Voice) -> str:
        """The language of a request that names none."""
        return "en" if voice.language == "mul" else voice.language

    def check_language(self, language: str, voice: Voice) -> None:
        """Raise UsageError for a language that a voice can't speak."""
        if voice is ESPEAK or self.symbols.phonemes:
            espeak_voice(language)
            return
        known = self.base.languages
        if known and "mul" not in known and not {one.partition("-")[0] for one in known} & {language.partition("-")[0]}:
            spoken = ", ".join(f"{display_name(one)} ({one})" for one in known)
            raise UsageError(
                f"'{self.base.name}' reads the letters of {spoken} alone, not {display_name(language)}: take a voice "
                "that reads phonemes, or the voice espeak"
            )


def _places(sentence: Sentence) -> Iterator[tuple[str, int, int]]:
    """Each word with its place in the text."""
    begin = 0
    for word in sentence.words:
        begin = sentence.text.index(word.text, begin)
        yield word.text, begin, begin + len(word.text)
        begin += len(word.text)


def _marked(samples: Any, rate: int, sentence: Sentence, words: tuple[Word, ...]) -> Spoken:
    """A sentence at `RATE` with the watermark and the silence after it."""
    samples = resampled([samples], rate, RATE)
    faded = min(len(samples), round(_FADE * RATE))
    if faded:
        samples[-faded:] *= np.linspace(1, 0, faded, dtype=np.float32)
    samples = watermark().mark(samples, RATE)
    silence = np.zeros(round(sentence.pause * RATE), np.float32)
    return Spoken(np.concatenate([samples, silence]), sentence.text, words)


_ANY = Symbols({}, frozenset(",.;:!? "), phonemes=True)
"""For eSpeak alone, which is given the text: nothing is known of a voice's symbols."""
