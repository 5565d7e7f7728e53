"""Text sources of the starter data: the Universal Declaration, ISO names, dictionaries, interface strings.

Each source is a small class with the same three methods; `folders` are its unpacked packages by their key in
starter.yaml. Every source yields `Pair`s of a text in English and its translation.
"""

import csv
import gzip
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from kauli.models.errors import KauliError, UsageError
from kauli.models.languages import check_tag, likely_tag, nfc, script_share
from kauli.training.data.groups import UDHR_KEY, english_key, normalise, short_hash

Folders = Mapping[str, Path]

LEAST_SCRIPT_SHARE = 0.5  # of a text's letters in its language's script; a text with fewer is in another language
_SPACES = re.compile(r"[\s\u200b\ufeff]+")
_ETHIOPIC_WORD_SPACE = "\u1361"


@dataclass(frozen=True)
class Pair:
    """A text in English and in another language, with an image and an audio clip where there are some.

    `keys` are its group keys: after all links are made, the first finds its group.
    """

    english: str
    text: str
    keys: tuple[str, ...]
    image: bytes | None = None
    audio: bytes | None = None


class Source:
    """A source, as starter.py uses it; one without shared packages has neither links nor languages of its own."""

    pivot = "en"
    """The language of `Pair.english`: for all but a few sources English."""

    def links(self, folders: Folders) -> Iterator[tuple[str, ...]]:
        """Keys that belong to one group. They do not depend on the languages that are built, and fix all groups."""
        return iter(())

    def languages(self, folders: Folders) -> set[str]:
        """The languages of the texts in the shared packages."""
        return set()

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        """All pairs of the source in `language`; for `en` both texts are English."""
        raise NotImplementedError


def tidy(text: str) -> str:
    """NFC with single spaces; the old Ethiopic word space becomes a plain space, with none before a full stop."""
    text = _SPACES.sub(" ", nfc(text).replace(_ETHIOPIC_WORD_SPACE, " ")).strip()
    return re.sub(r" +([\u1362-\u1368])", r"\1", text)


def locale_tag(name: str) -> str | None:
    """The tag of a locale's folder or file name (`pt_BR`, `sr@latin`, `sw`), shortest form; None when it has none."""
    base, _, variant = name.partition("@")
    if variant:
        script = {"latin": "Latn", "iqtelif": "Latn", "cyrillic": "Cyrl"}.get(variant)
        if script is None:
            return None
        base = f"{base.split('_')[0]}-{script}"
    try:
        return likely_tag(check_tag(base))
    except UsageError:
        return None


class Udhr(Source):
    """The Universal Declaration of Human Rights, paragraph by paragraph, from the npm package `udhr`."""

    def links(self, folders: Folders) -> Iterator[tuple[str, ...]]:
        for number, paragraphs in _articles(folders["texts"], "eng").items():
            yield tuple([f"{UDHR_KEY}{number}", *(english_key(paragraph) for paragraph in paragraphs)])

    def languages(self, folders: Folders) -> set[str]:
        return {tag for tag, _code in _declarations(folders["texts"])}

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        english = _articles(folders["texts"], "eng")
        codes = [code for tag, code in _declarations(folders["texts"]) if tag == language]
        if not codes:
            return

        def unlike_english(code: str) -> tuple[bool, int, int, str]:
            """Dialects have codes of digits; then the text that can be aligned best; then the shortest code."""
            own = _articles(folders["texts"], code)
            gap = sum(abs(len(paragraphs) - len(own.get(number, []))) for number, paragraphs in english.items())
            return code.isdigit(), gap, len(code), code

        own = _articles(folders["texts"], min(codes, key=unlike_english))
        shared = [number for number in english if number in own]
        ratio = _length_ratio([" ".join(english[n]) for n in shared], [" ".join(own[n]) for n in shared])
        for number in shared:
            for source, target in align(_fold(number, english[number]), _fold(number, own[number]), ratio):
                yield Pair(source, target, (f"{UDHR_KEY}{number}",))


_NUM_RECITALS = 7  # "Whereas ..."; the rest is one sentence, which languages split into lines differently
_MOST_UNLIKE = math.log(2.2)  # a greater difference of lengths: the texts are not translations of each other
# (paragraphs of English, paragraphs of the language, cost added to the difference of lengths)
_STEPS = ((1, 1, 0.0), (2, 1, 0.25), (1, 2, 0.25), (1, 0, 0.42), (0, 1, 0.42))


def _fold(number: int, paragraphs: list[str]) -> list[str]:
    """The paragraphs of an article; of the preamble (0), the seven recitals and the proclamation as one."""
    if number or len(paragraphs) <= _NUM_RECITALS:
        return paragraphs
    return [*paragraphs[:_NUM_RECITALS], " ".join(paragraphs[_NUM_RECITALS:])]


def _length_ratio(ours: list[str], theirs: list[str]) -> float:
    return sum(map(len, theirs)) / sum(map(len, ours)) if any(ours) else 1.0


def align(ours: list[str], theirs: list[str], ratio: float) -> list[tuple[str, str]]:
    """Pairs of paragraphs that translate each other, in order: one to one if their numbers are equal, else by length.

    `ratio` is the length of the language by that of English. If the numbers differ, paragraphs are aligned as by Gale
    and Church (1993): two may match one, and one in the wrong article matches none. Pairs whose lengths differ too much
    are left out.
    """

    def unlike(a: str, b: str) -> float:
        return abs(math.log((len(b) + 20) / (len(a) * ratio + 20)))  # twenty more letters tolerate short texts

    if len(ours) == len(theirs):
        return [(a, b) for a, b in zip(ours, theirs, strict=True) if unlike(a, b) <= _MOST_UNLIKE]
    # best[i, j]: (cost, pairs) of the first i of ours against the first j of theirs
    best: dict[tuple[int, int], tuple[float, list[tuple[str, str]]]] = {(0, 0): (0.0, [])}
    for i in range(len(ours) + 1):
        for j in range(len(theirs) + 1):
            for step_i, step_j, extra in _STEPS:
                before = best.get((i - step_i, j - step_j))
                if before is None:
                    continue
                a, b = " ".join(ours[i - step_i : i]), " ".join(theirs[j - step_j : j])
                cost = before[0] + extra + (unlike(a, b) if a and b else 0.0)
                if (i, j) not in best or cost < best[i, j][0]:
                    best[i, j] = (cost, [*before[1], (a, b)])
    return [(a, b) for a, b in best[len(ours), len(theirs)][1] if a and b and unlike(a, b) <= _MOST_UNLIKE]


def _declarations(folder: Path) -> list[tuple[str, str]]:
    """(tag, code) of every text in the package's index, which is a JavaScript module."""
    index = (folder / "package" / "index.js").read_text(encoding="utf-8")
    entries = re.findall(r"bcp47: '([^']+)',\s*code: '([^']+)'", index)
    if not entries:
        raise KauliError(f"{folder}/package/index.js lists no declarations: is it the udhr package?")
    return [(tag, code) for bcp47, code in entries if (tag := locale_tag(bcp47))]


def _articles(folder: Path, code: str) -> dict[int, list[str]]:
    """Paragraphs by article, 0 being the preamble; empty for a declaration that has no articles marked."""
    reader = _DeclarationReader()
    reader.feed((folder / "package" / "declaration" / f"{code}.html").read_text(encoding="utf-8"))
    return reader.articles


class _DeclarationReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.articles: dict[int, list[str]] = {}
        self._number: int | None = None
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "header":
            self._number = 0
        elif tag == "article":
            number = dict(attrs).get("data-number") or ""
            self._number = int(number) if number.isdigit() and 1 <= int(number) <= 30 else None
        elif tag == "p":
            self._text = []

    def handle_endtag(self, tag: str) -> None:
        if tag == "p" and self._text is not None:
            text = tidy("".join(self._text))
            if text and self._number is not None:
                self.articles.setdefault(self._number, []).append(text)
            self._text = None
        elif tag in ("header", "article"):
            self._number = None

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)


class IsoCodes(Source):
    """Names of countries, regions, languages, scripts and currencies, from Debian's `iso-codes`."""

    # Broken files: letters are shifted within the Ethiopic block ("ጐፄስትሳሑ።" for Australia)
    BROKEN = frozenset({("am", "iso_3166-1"), ("am", "iso_3166-3")})

    def links(self, folders: Folders) -> Iterator[tuple[str, ...]]:
        for path in sorted((folders["names"] / "usr/share/iso-codes/json").glob("iso_*.json")):
            for records in json.loads(path.read_text(encoding="utf-8")).values():
                for record in records:  # "Tanzania" and "Tanzania, United Republic of" are one concept
                    names = [value for key, value in sorted(record.items()) if key == "name" or key.endswith("_name")]
                    yield tuple(english_key(name) for name in names)

    def languages(self, folders: Folders) -> set[str]:
        folder = folders["names"] / "usr/share/locale"
        return {tag for path in folder.iterdir() if (tag := locale_tag(path.name))} - {"en"}

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        for folder in sorted((folders["names"] / "usr/share/locale").iterdir()):
            if locale_tag(folder.name) != language or language == "en":
                continue
            for path in sorted(folder.glob("LC_MESSAGES/*.mo")):
                if path.is_symlink() or (language, path.stem) in self.BROKEN:
                    continue
                for _context, english, text in read_mo(path):
                    yield Pair(tidy(english), tidy(text), (english_key(english),))


def read_mo(path: Path) -> Iterator[tuple[str, str, str]]:
    """(context, message, translation) of a gettext catalogue, in its order; plural forms and the header left out.

    Raises `KauliError` for a file that is not a catalogue in UTF-8.
    """
    data = path.read_bytes()
    order = {b"\xde\x12\x04\x95": "<", b"\x95\x04\x12\xde": ">"}.get(data[:4])
    if order is None:
        raise KauliError(f"{path} is not a gettext catalogue (.mo).")
    try:
        num_strings, originals, translations = struct.unpack_from(f"{order}3I", data, 8)
        for index in range(num_strings):
            length, offset = struct.unpack_from(f"{order}2I", data, originals + 8 * index)
            message = data[offset : offset + length].decode()
            length, offset = struct.unpack_from(f"{order}2I", data, translations + 8 * index)
            text = data[offset : offset + length].decode()
            if message and text and "\0" not in message:
                context, _, message = message.rpartition("\x04")
                yield context, message, text
    except (struct.error, UnicodeDecodeError) as error:
        raise KauliError(f"{path} is a damaged catalogue, or not in UTF-8: {error}") from error


class FreeDict(Source):
    """Word pairs from the FreeDict dictionaries, of both directions.

    An English word is its own key, so that no dictionary changes another's groups.
    """

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        for name, folder in sorted(folders.items()):
            for path in sorted((folder / "usr/share/dictd").glob("*.index")):
                for headwords, body in _entries(path):
                    glosses = _glosses(body)
                    from_english = name.startswith("eng-")
                    for headword in headwords:
                        for gloss in glosses:
                            english, text = (headword, gloss) if from_english else (gloss, headword)
                            english = re.sub(r"^to (?=\w)", "", tidy(english))
                            if len(english) > 1:  # a single letter is not a word
                                yield Pair(english, tidy(text), (english_key(english),))


_DIGITS = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}


def _entries(index: Path) -> Iterator[tuple[list[str], str]]:
    """(headwords, body) of each entry of a dictd dictionary: inflected forms and plurals left out."""

    def number(text: str) -> int:
        value = 0
        for char in text:
            value = value * 64 + _DIGITS[char]
        return value

    data = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    seen = set()
    for line in index.read_text(encoding="utf-8").splitlines():
        word, offset, length = line.split("\t")[:3]
        if word.startswith("00database") or (offset, length) in seen:  # an entry is indexed under each headword
            continue
        seen.add((offset, length))
        entry = data[number(offset) : number(offset) + number(length)].decode()
        head, _, body = entry.partition("\n")
        if re.search(r"<[^>]*\b(infl|agr)\b", head) or "Plural of {" in body:
            continue
        head = re.split(r" /|/ | <| \(| \[", head, maxsplit=1)[0]
        yield [tidy(part) for part in head.split(",") if part.strip()], body


def _glosses(body: str) -> list[str]:
    """The short equivalents of an entry's body, in order; explanations and cross references left out."""
    words = re.sub(r"\([^)]*\)|\[[^\]]*\]|<[^>]*>", " ", body)
    lines = [line for line in words.splitlines() if not re.match(r'\s*(See also|Note|Synonyms?|Antonyms?|")', line)]
    parts = re.split(r"[;,\n]", "\n".join(re.sub(r"^\s*\d+\.", "", line) for line in lines))
    glosses = [gloss for part in parts if (gloss := tidy(part))]
    return [gloss for gloss in glosses if len(gloss.split()) <= 4 and not re.search(r'[][{}()<>\d:=/|"]|\.\.', gloss)]


class Catalogs(Source):
    """Interface strings of LibreOffice with their translations: four words or more, without placeholders and markup."""

    CAP = 3000
    LENGTHS = (0.35, 3.0)  # characters of the translation by those of the English; others are no translations
    WORDS = 4  # texts of at least so many words are compared in length
    MOST_SOURCES = 2  # a translation of more English strings was guessed by a tool and not corrected

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        found: dict[str, Pair] = {}
        for _name, folder in sorted(folders.items()):
            for path in sorted(folder.rglob("*.mo")):
                for _context, message, translation in read_mo(path):
                    english, text = clean_interface_string(message), clean_interface_string(translation)
                    if english and text and text != english and len(english.split()) >= 4:
                        key = english_key(english)
                        found.setdefault(key, Pair(english, text, (key,)))
        uses = Counter(pair.text for pair in found.values())
        chosen = [
            pair
            for pair in sorted(found.values(), key=lambda pair: short_hash("cap", pair.keys[0]))
            if uses[pair.text] <= self.MOST_SOURCES
            and self.LENGTHS[0] <= len(pair.text) / len(pair.english) <= self.LENGTHS[1]
            and script_share(pair.text, language) >= LEAST_SCRIPT_SHARE
        ]
        yield from chosen[: self.CAP]


class FullCatalogs(Catalogs):
    """All interface strings of LibreOffice, as a translator gets them: short ones, with accelerators, placeholders."""

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        found: dict[str, Pair] = {}
        for _name, folder in sorted(folders.items()):
            for path in sorted(folder.rglob("*.mo")):
                for _context, message, translation in read_mo(path):
                    english, text = tidy(message), tidy(translation)
                    alike = self.LENGTHS[0] <= len(text) / max(1, len(english)) <= self.LENGTHS[1]
                    if re.search(r"[^\W\d_]", english) and text and (alike or len(english.split()) < self.WORDS):
                        found.setdefault(english, Pair(english, text, (english_key(english),)))
        yield from found.values()


class Elotl(Source):
    """Sentences in Nahuatl and Otomi with their Spanish, from the PyPI package `elotl`: from books, by several editors.

    The package is under the MPL 2.0; it says of the texts themselves only that there are other licences too.
    """

    pivot = "es"
    FILES = (("axolotl.csv", 4), ("tsunkua.csv", 2))  # file -> the column that names the variant by its ISO 639-3 code

    def pairs(self, language: str, folders: Folders) -> Iterator[Pair]:
        for name, column in self.FILES:
            with (folders["corpora"] / "elotl/corpora" / name).open(encoding="utf-8", newline="") as file:
                for line in csv.reader(file):
                    if re.search(rf"\b{language}\)?$", line[column]):
                        spanish, text = tidy(line[0]), tidy(line[1])
                        yield Pair(spanish, text, (f"es:{normalise(spanish)}",))


def clean_interface_string(text: str) -> str | None:
    """The words of an interface string without its accelerator mark; None if it has placeholders or markup."""
    text = re.sub(r"\s*\([~_]\w\)", "", tidy(text))  # "(~F)", where the script has no letter to underline
    text = re.sub(r"[~_](?=\w)", "", text, count=1)
    if re.search(r"[~_%$<>{}\[\]\\|#@=*^]|https?:|www\.|\.\.\.$|\w\(\)|&\w+;", text):
        return None
    return text or None
