"""Recognisers that listen to speech: what they hear in it, and how likely they find what was to be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from kauli.models.adapters.folder import check_base
from kauli.models.adapters.registry import Registry
from kauli.models.bases.find import find_base
from kauli.models.errors import UsageError
from kauli.models.languages import display_name, fallback_chain
from kauli.models.media.decode import RATE
from kauli.models.requests import TranscriptionRequest
from kauli.models.speech.espeak import espeak, espeak_voice
from kauli.models.speech.loops import looped
from kauli.models.tasks import load_served
from kauli.training.evaluation.error_rates import character_edits, normalised
from kauli.training.evaluation.scorers import clean
from kauli.training.evaluation.systems import generate

_BATCH = 8


@dataclass(frozen=True)
class Judge:
    """A base for `transcribe`, or an adapter on one."""

    name: str
    task: Any = field(repr=False)
    adapter: str | None = None
    """The key under which the task holds it."""
    languages: tuple[str, ...] = ()
    """Those that it knows; empty: any."""
    instead: Mapping[str, str] = field(default_factory=dict)
    """A language that it does not know -> a related one in which it is asked to write."""

    @classmethod
    def load(cls, name: str, instead: Mapping[str, str] | None = None, registry: Registry | None = None) -> Self:
        """The base called `name`, else the registry's adapter.

        Raises UsageError where there is neither, and where the base of the adapter does not transcribe.
        """
        if registry is None or name.partition("@")[0] not in registry.names():
            try:
                found = find_base(name, task="transcribe")
            except UsageError as error:
                raise UsageError(f"speak.judges: '{name}' is no adapter here, and as a base: {error}") from None
            task = load_served("transcribe", found)
            return cls(name, task, None, tuple(task.languages()), instead or {})
        card = registry.card(name)
        base = find_base(card.base.name, task="transcribe")
        check_base(card, base)
        task = load_served("transcribe", base)
        task.add_adapter(card.spec, registry.fetch(card.spec))
        return cls(card.spec, task, card.spec, tuple(card.language), instead or {})

    def check(self, tags: Sequence[str]) -> None:
        """Raise UsageError where it does not know a language, and no other is named to ask it for."""
        for tag in tags:
            asked = self._asked(tag)
            if self.languages and not {asked, *fallback_chain(asked)} & set(self.languages):
                raise UsageError(
                    f"speak.judges: {self.name} does not know {display_name(asked)} ({asked}): name a related language,"
                    f" such as --set 'speak.judge_languages={{{tag}: kk}}', or another judge. It knows "
                    f"{', '.join(self.languages)}."
                )

    def transcripts(self, clips: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """What it hears in each clip (n,) at 16 kHz; the row tells the language."""
        longest = int(self.task.seconds * RATE)
        requests = [
            TranscriptionRequest(clip[:longest], self._asked(row["language"]))
            for clip, row in zip(clips, rows, strict=True)
        ]
        return [clean(text) for text in generate(self.task, requests, [self.adapter] * len(requests))]

    def bits(self, clips: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> list[tuple[float, int]]:
        """(bits, bytes) of each row's text, given the clip: less noisy than the errors of a transcript."""
        heard = [
            {"samples": clip, "text": clean(row["text"]), "language": self._asked(row["language"])}
            for clip, row in zip(clips, rows, strict=True)
        ]
        batches = [heard[at : at + _BATCH] for at in range(0, len(heard), _BATCH)]
        return [one for batch in batches for one in self.task.bits(batch, self.adapter)]

    def _asked(self, tag: str) -> str:
        return self.instead.get(tag, tag)


def understood(texts: Sequence[str], heard: Sequence[str], language: str) -> dict[str, list[Sequence[float]]]:
    """The errors of each transcript in letters and in sounds, and whether it loops; at most as many as the text has."""
    voice = espeak_voice(language)
    sounds = [espeak().phonemes([normalised(one) or " " for one in side], voice) for side in (texts, heard)]
    plain = [["".join(one.split()) for one in side] for side in sounds]
    found = {
        "round_trip_cer": character_edits(heard, texts), "phoneme_error": character_edits(plain[1], plain[0]),
    }  # fmt: skip
    capped: dict[str, list[Sequence[float]]] = {
        name: [[min(wrong, count), count] for wrong, count in one] for name, one in found.items()
    }
    return capped | {"looped": [[float(looped(one)), 1.0] for one in heard]}
