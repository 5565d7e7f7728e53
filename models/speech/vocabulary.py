"""The letters of a CTC model and their indices in its head; transcripts in the normalised form that it writes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import regex

from kauli.models.errors import KauliError, UsageError
from kauli.models.files import read_json
from kauli.models.languages import APOSTROPHES, check_tag, nfc, scripts

VOCABULARY, TOKENIZER = "vocab.json", "tokenizer_config.json"
_APOSTROPHES = regex.compile(f"[{APOSTROPHES}]")
_INVISIBLE = regex.compile(r"\p{Cf}")
# Marks on a symbol (the variation selector of ❤️) go with it.
_NO_LETTER = regex.compile(r"(?:(?<![\p{L}\p{M}\p{N}])'|'(?![\p{L}\p{N}])|[^\p{L}\p{M}\p{N}'])\p{M}*", regex.V1)
_SPECIAL = regex.compile(r"<.+>|\[.+\]")


def normalised(text: str) -> str:
    """The text in Unicode NFC and lower case: letters, marks and digits with one space between words.

    Every kind of apostrophe becomes ' and is kept between letters; other punctuation and symbols become spaces,
    invisible format characters are removed. Character error rates are counted on the same, with the case folded.
    """
    lower = nfc(nfc(_INVISIBLE.sub("", text)).lower())
    return " ".join(_NO_LETTER.sub(" ", _APOSTROPHES.sub("'", lower)).split())


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a CTC head by their index, V of them."""

    tokens: tuple[str, ...] = ("<pad>", "|")
    blank: int = 0
    """The index of the blank, which is no letter."""
    space: str = "|"
    """The token between words."""

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Character of `normalised` text -> index; also for a vocabulary in upper case or with another apostrophe."""
        found = {
            token: place
            for place, token in enumerate(self.tokens)
            if len(token) == 1 and place != self.blank and token != self.space
        }
        for token, place in list(found.items()):
            found.setdefault(token.lower(), place)
            if token in APOSTROPHES:
                found.setdefault("'", place)
        if self.space in self.tokens:
            found[" "] = self.tokens.index(self.space)
        return found

    def encode(self, text: str) -> tuple[list[int], int]:
        """The indices of the text's characters, and the number of characters that have none."""
        places = [self.places.get(character) for character in normalised(text)]
        return [place for place in places if place is not None], places.count(None)

    def decode(self, places: Iterable[int]) -> str:
        """The text of letters, without `<unk>` and other special tokens."""
        return " ".join("".join(self.written(place) for place in places).split())

    def written(self, place: int) -> str:
        """The text of one index."""
        token = self.tokens[place]
        return " " if token == self.space else "" if _SPECIAL.fullmatch(token) else token

    def with_those_of(self, texts: Iterable[str]) -> "Vocabulary":
        """These letters, followed by the other letters of the texts."""
        found = {character for text in texts for character in normalised(text)} - {" "}
        missing = sorted(found - self.places.keys())
        space = () if self.space in self.tokens else (self.space,)
        return replace(self, tokens=(*self.tokens, *space, *missing))


def read_vocabularies(folder: Path, blank: int) -> dict[str, Vocabulary]:
    """The vocabularies in a base's folder by language code, the default one first; a single one has the code "".

    Empty for a bare encoder, which has none. Raises KauliError for a file that is no vocabulary.
    """
    path = folder / VOCABULARY
    if not path.is_file():
        return {}
    content = read_json(path)
    settings = read_json(folder / TOKENIZER) if (folder / TOKENIZER).is_file() else {}
    space = settings.get("word_delimiter_token") or "|"
    nested = isinstance(content, dict) and any(isinstance(part, dict) for part in content.values())
    default = settings.get("target_lang") or "eng"
    codes = sorted(content, key=lambda code: code != default) if nested else [""]
    return {code: _letters(content[code] if nested else content, blank, space, path) for code in codes}


def _letters(places: Any, blank: int, space: str, path: Path) -> Vocabulary:
    if not isinstance(places, dict) or not places or not all(type(place) is int for place in places.values()):
        raise KauliError(f"{path} is no vocabulary: it must map letters to indices.")
    # An index without a token writes nothing
    tokens = ["<>"] * (max(places.values()) + 1)
    if min(places.values()) < 0 or len(tokens) > 100_000 or not 0 <= blank < len(tokens):
        raise KauliError(
            f"{path} is no vocabulary of this model: an index is negative, too large, or missing for the blank."
        )
    for token, place in places.items():
        tokens[place] = token
    return Vocabulary(tuple(tokens), blank, space)


@cache
def find_code(tag: str, codes: tuple[str, ...]) -> str | None:
    """MMS's code of a language, such as `kir` or `uzb-script_latin`; None where it has no adapter for it.

    Raises UsageError for an invalid tag.
    """
    wanted = check_tag(tag).split("-")[0]
    for code in codes:
        script = code.partition("-script_")[2].title()
        if tag_of(code) == wanted and (not script or script in scripts(tag)):
            return code
    return None


def tag_of(code: str) -> str | None:
    """The language tag of a code of MMS; None where it has none."""
    try:
        return check_tag(code.partition("-")[0]).split("-")[0]
    except UsageError:  # of the thousand languages of MMS, some have no tag
        return None
