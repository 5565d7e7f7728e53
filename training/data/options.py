"""How a user's files are read: what a recipe calls `data_options`, and `kauli data check` its options."""

import codecs
from typing import Any, Literal, get_args

from pydantic import Field, field_validator

from kauli.models.errors import UsageError, nearest
from kauli.models.frozen import FrozenModel
from kauli.models.languages import check_tag

Leaks = Literal["content", "pair", "group"]


class DataOptions(FrozenModel):
    """What the files themselves do not tell. Built data sets ignore all of it but `fold`."""

    map: dict[str, str] = Field(default={})
    """Our column -> the file's, as `{text: sentence, language: locale}` or `text=sentence,language=locale`; an empty
    name takes none."""
    language: str | None = None
    """BCP-47 tag of rows that name no language."""
    input_language: str | None = None
    """BCP-47 tag of `input`, which the text translates, where the file does not tell."""
    tier: str | None = None
    """Of ELAN and Praat files, the tier with the text; null: the only one that holds texts."""
    encoding: str | None = None
    """Of text files, such as cp1252; null: UTF-8, or UTF-16 and UTF-32 by their byte order mark."""
    delimiter: str | None = None
    """The one character between the fields of CSV and TSV, or `tab`; null: found in the header line."""
    leaks: Leaks = "content"
    """Which rows stay in one split: `content`, those that share a prompt, image, audio or distinctive text; `pair`,
    those whose prompt, image, audio and text are all the same; `group`, those of one `group` alone."""
    fold: tuple[int, int] | None = None
    """[K, N]: other splits than those of the data; of N parts of all groups part K, from 0, is the test split, and an
    eighth of the rest is for validation. `kauli compare --folds N` tests every part once."""

    @field_validator("map", mode="before")
    @classmethod
    def _pairs(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        pairs = [pair.partition("=") for pair in given.split(",")]
        if not all(ours.strip() and equals for ours, equals, _theirs in pairs):
            raise UsageError(f"map '{given}': write COLUMN=NAME, such as text=sentence,language=locale.")
        return {ours.strip(): theirs.strip() for ours, _equals, theirs in pairs}

    @field_validator("language", "input_language")
    @classmethod
    def _tag(cls, given: str | None) -> str | None:
        return given and check_tag(given)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, given: str | None) -> str | None:
        try:
            "".encode(given or "utf-8")  # there are codecs of other things than text
            return given and codecs.lookup(given).name
        except LookupError:
            raise UsageError(f"unknown encoding '{given}': such as utf-8, utf-16, cp1252 or iso8859-15.") from None

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, given: str | None) -> str | None:
        if given is None:
            return None
        found = "\t" if given in ("tab", "\\t") else given
        if len(found) != 1 or found in '"\r\n':
            raise UsageError(f"delimiter '{given}': one character such as ';', ',' or '|', or 'tab'.")
        return found

    @field_validator("fold")
    @classmethod
    def _one_of_the_parts(cls, given: tuple[int, int] | None) -> tuple[int, int] | None:
        if given is not None and not (given[1] >= 2 and 0 <= given[0] < given[1]):
            raise UsageError(f"fold {list(given)}: [K, N] with N from 2 up and K from 0 to N - 1.")
        return given

    @field_validator("leaks", mode="before")
    @classmethod
    def _known_leaks(cls, given: Any) -> Any:
        known = get_args(Leaks)
        if given not in known:
            raise UsageError(f"leaks '{given}': one of {', '.join(known)}.{nearest(str(given), known)}")
        return given
