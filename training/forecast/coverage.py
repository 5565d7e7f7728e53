"""What of the validation texts no training text has: characters, words, and the sounds that eSpeak reads."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from kauli.models.errors import KauliError
from kauli.models.progress import note
from kauli.models.speech.espeak import espeak, espeak_voice

_WORD = regex.compile(r"\p{L}[\p{L}\p{M}'’-]*")
_SOUND = regex.compile(r"\p{L}[\p{M}\p{Lm}\p{Sk}]*", regex.V1)
_STRESS = regex.compile(r"[ˈˌ]")
NUM_SHOWN = 20


@dataclass(frozen=True)
class Uncovered:
    """Units of validation that training lacks."""

    counts: tuple[tuple[str, int], ...]
    """Each with its occurrences in validation, the most frequent first."""
    different: int
    """Different units of validation."""
    share: float
    """Of the occurrences in validation, those that are not covered."""

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"counts": dict(self.counts), "different": self.different, "share": round(self.share, 4)}


def uncovered(train: Iterable[str], validation: Iterable[str], units: Callable[[str], Sequence[str]]) -> Uncovered:
    """The units of the validation texts that no training text has."""
    known = {unit for text in train for unit in units(text)}
    counts = Counter(unit for text in validation for unit in units(text))
    missing = sorted(((unit, count) for unit, count in counts.items() if unit not in known), key=lambda one: -one[1])
    share = sum(count for _, count in missing) / max(1, counts.total())
    return Uncovered(tuple(missing), len(counts), share)


def characters(text: str) -> list[str]:
    """Letters with their marks, in lower case."""
    return [char for char in text.casefold() if not char.isspace()]


def words(text: str) -> list[str]:
    """Words in lower case."""
    return _WORD.findall(text.casefold())


def sounds(ipa: str) -> list[str]:
    """The sounds of a text that eSpeak has read: a letter of the IPA with its length and marks, without stress."""
    return _SOUND.findall(_STRESS.sub("", ipa))


def coverage(train: Sequence[dict[str, Any]], validation: Sequence[dict[str, Any]]) -> dict[str, Uncovered]:
    """`characters` and `words`; for rows with audio, of languages that eSpeak reads, `sounds` as well."""
    known, asked = ([row["text"] for row in rows] for rows in (train, validation))
    found = {"characters": uncovered(known, asked, characters), "words": uncovered(known, asked, words)}
    if any(row["audio"] for row in (*train, *validation)):
        try:
            read: list[list[str]] = [[], []]
            for side, rows in enumerate((train, validation)):
                for tag in sorted({row["language"] for row in rows}):
                    own = [row["text"] for row in rows if row["language"] == tag]
                    read[side] += espeak().phonemes(own, espeak_voice(tag))
            found["sounds"] = uncovered(read[0], read[1], sounds)
        except KauliError as error:
            note(f"sounds are not counted: {error}")
    return found
