"""The symbols that a voice reads, and the nearest of them for the sounds of any language."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import regex
import yaml

from kauli.models.errors import UsageError
from kauli.models.files import read_json
from kauli.models.speech.vits_model import voice_facts

_MARKS_BESIDE = regex.compile(r"[\p{M}\p{Lm}\p{Sk}\p{N}\p{P}\p{S}]")
_SPECIAL = frozenset("_^$")


@dataclass(frozen=True)
class Symbols:
    """The alphabet of a voice."""

    numbers: Mapping[str, int]
    trained: frozenset[str]
    """Those that its training data had."""
    phonemes: bool
    """Whether they are sounds of the IPA; else they are letters."""
    espeak: str | None = None
    """The voice of eSpeak whose sounds it was trained on."""
    lower: bool = True
    """Of letters: whether it knows small ones alone."""
    _nearest: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def read(cls, folder: Path, name: str) -> "Symbols":
        """Of a converted voice of Piper, or of a `VitsTokenizer` that reads letters. Raises UsageError for others."""
        facts = voice_facts(folder)
        if facts:
            return cls(facts["symbols"], frozenset(facts["trained"]) - _SPECIAL, True, facts["espeak"])
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        for key in ("phonemize", "is_uroman"):
            if settings.get(key, False):
                raise UsageError(
                    f"'{name}' needs its text prepared by another program ('{key}' in tokenizer_config.json), which "
                    "kauli does not run: take a voice of Piper, or one that reads letters."
                )
        if not settings.get("add_blank", True):
            raise UsageError(f"'{name}' reads symbols without blanks between them, which kauli does not do.")
        numbers = read_json(folder / "vocab.json")
        return cls(numbers, frozenset(numbers), False, lower=bool(settings.get("normalize", True)))

    @property
    def first(self) -> int:
        """The place of a sentence's first symbol among its tokens; each further one is 2 places on."""
        return 2 if self.phonemes else 1

    def tokens(self, symbols: Sequence[str]) -> list[int]:
        """A sentence as the model takes it: a blank beside each symbol and, in Piper's voices, marks at the ends."""
        blank = self.numbers["_"] if self.phonemes else 0
        inner = [number for symbol in symbols for number in (self.numbers[symbol], blank)]
        if self.phonemes:
            return [self.numbers["^"], blank, *inner, self.numbers["$"]]
        return [blank, *inner]

    def sounds(self, ipa: str, language: str) -> str:
        """The IPA of eSpeak by symbols that the voice was trained on, the nearest ones."""
        return "".join(map(self._near, self._rewritten(ipa, language)))

    def with_trained(self, sounds: Iterable[str]) -> "Symbols":
        """The same with further sounds that were trained, by an adapter."""
        return replace(self, trained=self.trained | frozenset(sounds), _nearest={})

    def near(self, sign: str) -> str:
        """The nearest symbols that the voice was trained on; "" where there are none."""
        return self._near(sign)

    def native(self, language: str) -> bool:
        """Whether a language is the one that the voice was trained on."""
        return (self.espeak or "").partition("-")[0] == language.partition("-")[0]

    def _rewritten(self, ipa: str, language: str) -> str:
        ipa = unicodedata.normalize("NFC", ipa)
        if self.native(language):
            return ipa
        for name in (language.partition("-")[0], "*"):
            for written, meant in _table()["rewritten"].get(name, {}).items():
                ipa = ipa.replace(written, meant)
        return ipa

    def exactly(self, ipa: str) -> str:
        """IPA that a user gave, by the nearest symbols. Raises UsageError for a sign that is no sound."""
        known = _table()["neighbours"]
        for sign in unicodedata.normalize("NFC", ipa):
            if self._near(sign) or sign in known or unicodedata.category(sign) in ("Mn", "Lm", "Sk"):
                continue
            raise UsageError(f"'{sign}' in /{ipa}/ is no sound of the International Phonetic Alphabet")
        return "".join(map(self._near, unicodedata.normalize("NFC", ipa)))

    def letters(self, text: str) -> str:
        """The letters and marks of a text that the voice has."""
        text = unicodedata.normalize("NFC", text.lower() if self.lower else text)
        return "".join(letter for letter in text if letter in self.numbers and letter not in _SPECIAL)

    def mark(self, sign: str) -> str:
        """A mark of punctuation as the voice reads it; "" where it reads none of it."""
        found: str = _table()["marks"].get(sign, sign)
        return found if found in self.trained else ""

    def _near(self, sound: str) -> str:
        if sound not in self._nearest:
            self._nearest[sound] = self._search(sound, ())
        return self._nearest[sound]

    def _search(self, sound: str, seen: tuple[str, ...]) -> str:
        if sound in self.trained:
            return sound
        if len(parts := unicodedata.normalize("NFD", sound)) > 1 and sound not in _table()["neighbours"]:
            return "".join(self._search(part, (*seen, sound)) for part in parts)
        near = _table()["neighbours"].get(sound)
        if near is None or sound in seen:
            return ""
        return "".join(self._search(part, (*seen, sound)) for part in near)

    def unmapped(self, ipa: str, language: str) -> list[str]:
        """The sounds of an IPA text that come out as silence, marks beside sounds apart."""
        ipa = self._rewritten(ipa, language)
        silent = {sign for sign in ipa if not sign.isspace() and not self._near(sign)}
        return sorted(one for one in silent if not _MARKS_BESIDE.fullmatch(one) and one not in _table()["neighbours"])


def foreign() -> Mapping[str, float]:
    """How a language other than a voice's own is spoken: `pace` and `noise`."""
    found: Mapping[str, float] = _table()["foreign"]
    return found


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files("kauli.models.speech").joinpath("sounds.yaml").read_text("utf-8"))
    for language, table in found["rewritten"].items():
        if language != "*":
            found["rewritten"][language] = dict(sorted(table.items(), key=lambda pair: -len(pair[0])))
    return found
