"""Language tags (BCP-47): checking, names, expected scripts, fallback chains; and the one normal form of text."""

import unicodedata
from functools import cache

import langcodes
import regex
from langcodes.tag_parser import LanguageTagError

from kauli.models.errors import UsageError, nearest

APOSTROPHES = "'’‘‛ʼʻʽʹ′`´＇՚׳ꞌ"
"""Characters that are typed as an apostrophe; before transcripts are compared, each becomes the first."""
_COMMON_TAGS = ("sw", "am", "be", "ky", "ka", "yo", "zu", "ha", "ig", "om", "ti", "so")  # to guess mistypes from
# ISO 15924 codes of several Unicode scripts, or that the CLDR names otherwise than Unicode
_SEVERAL_SCRIPTS = {
    "Beng": ("Bengali",),
    "Hans": ("Han",),
    "Hant": ("Han",),
    "Hanb": ("Han", "Bopomofo"),
    "Jpan": ("Han", "Hiragana", "Katakana"),
    "Hrkt": ("Hiragana", "Katakana"),
    "Kore": ("Hangul", "Han"),
    "Aran": ("Arabic",),
    "Cyrs": ("Cyrillic",),
    "Latf": ("Latin",),
    "Latg": ("Latin",),
}
_RIGHT_TO_LEFT = {"Adlm", "Arab", "Aran", "Hebr", "Mand", "Mend", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa", "Yezi"}


@cache
def check_tag(tag: str) -> str:
    """The BCP-47 tag in its shortest standard form: `swh`, `swh_Latn` and `SW` become `sw`.

    Raises `UsageError` for what is no tag or names no known language.
    """
    try:
        standard = langcodes.standardize_tag(tag.strip().replace("_", "-"), macro=True)
        valid = langcodes.tag_is_valid(standard)
    except LanguageTagError:
        valid = False
    if not valid or standard.split("-")[0] in ("und", "mul", "zxx", "mis"):
        raise UsageError(f"unknown language '{tag}': give a BCP-47 tag such as sw, am or be.{_suggestion(tag)}")
    parsed = langcodes.Language.get(standard, normalize=False)
    if parsed.script and parsed.script == langcodes.Language.make(language=parsed.language).maximize().script:
        standard = parsed.update_dict({"script": None}).to_tag()  # ky-Cyrl says no more than ky
    return standard


def _suggestion(tag: str) -> str:
    """A hint for a language's English name ("swahili") or for a mistyped name; empty when nothing is close."""
    try:
        return f" Did you mean '{langcodes.find(tag.strip()).to_tag()}'?"
    except LookupError:
        return nearest(tag.strip().lower(), _COMMON_TAGS)


@cache
def display_name(tag: str) -> str:
    """The English name of the language: `sw` -> "Swahili", `sr-Latn` -> "Serbian (Latin)"."""
    return langcodes.Language.get(check_tag(tag)).display_name("en")


@cache
def own_name(tag: str) -> str:
    """What the language calls itself: `sw` -> "Kiswahili"; its English name where that is not known."""
    return langcodes.Language.get(check_tag(tag)).autonym()


@cache
def runs_right_to_left(tag: str) -> bool:
    """Whether the language is written from right to left: `ar`, `ckb`, not `sw`."""
    return langcodes.Language.get(check_tag(tag)).maximize().script in _RIGHT_TO_LEFT


@cache
def scripts(tag: str) -> frozenset[str]:
    """Names of the Unicode scripts that the language is written in, good for regex `\\p{Script=NAME}`.

    `be` -> {"Cyrillic"}, `am` -> {"Ethiopic"}, `ja` -> {"Han", "Hiragana", "Katakana"}.
    """
    code = langcodes.Language.get(check_tag(tag)).maximize().script or "Latn"
    if code in _SEVERAL_SCRIPTS:
        return frozenset(_SEVERAL_SCRIPTS[code])
    name = langcodes.Language.make(script=code).script_name("en").replace(" ", "_")
    try:
        regex.compile(rf"\p{{Script={name}}}")
    except regex.error:  # the CLDR's name differs from Unicode's (Bangla, Bengali); the code is an alias of the latter
        name = code
    return frozenset({name})


def fallback_chain(tag: str) -> list[str]:
    """The tags that may serve a request for `tag`, best first: `be-tarask` -> [`be-tarask`, `be`]."""
    parts = check_tag(tag).split("-")
    return ["-".join(parts[:length]) for length in range(len(parts), 0, -1) if len(parts[length - 1]) > 1]


def nfc(text: str) -> str:
    """The text in Unicode normal form C, in which it is stored, prompted, measured and counted."""
    return unicodedata.normalize("NFC", text)


@cache
def likely_tag(tag: str) -> str:
    """The tag without a script and region that the rest implies: `ha-NG` -> `ha`, `pa-Arab-PK` -> `pa-Arab`."""
    parsed = langcodes.Language.get(tag, normalize=False)
    for keep in ({"script": None, "territory": None}, {"territory": None}, {"script": None}):
        shorter = parsed.update_dict(keep)
        if shorter.maximize() == parsed.maximize():
            return shorter.to_tag()
    return tag


_LETTER = regex.compile(r"\p{L}")


@cache
def _foreign_of(tag: str) -> "regex.Pattern[str]":
    own = "".join(rf"\p{{Script={name}}}" for name in sorted(scripts(tag)))
    return regex.compile(rf"[\p{{L}}--[{own}]]", regex.V1)


def script_share(text: str, tag: str) -> float:
    """The share of the text's letters that belong to the scripts of its language; 1.0 for a text without letters."""
    num_foreign = len(_foreign_of(tag).findall(text))
    if not num_foreign:  # so it nearly always is, and needs no count of letters
        return 1.0
    num_letters = len(_LETTER.findall(text))
    return (num_letters - num_foreign) / num_letters
