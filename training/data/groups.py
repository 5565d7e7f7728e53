"""Groups of rows that share content, and the split of each group.

Rows that share a key (an English text, an image, an audio clip, a code point) must be in one split, in all languages.
Keys are strings such as `text:elephant` or `image:<sha256>`. Keys that occur together are united, and the smallest key
of a component names its group.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import regex

from kauli.training.data.options import Leaks

UDHR_KEY = "udhr:"  # keys of the articles of the Universal Declaration, which are split by rank, not by chance
_NUM_UDHR_TEST, _NUM_UDHR_VALIDATION = 6, 3
# The first salt that gives test 11 or 12 of the 60 English paragraphs and validation 5 or 6, and leaves in train the
# preamble (some languages lack it) and Article 1 (quoted everywhere, so a base may know it by heart).
_UDHR_SALT = "rank-14"
_TEST_SHARE, _VALIDATION_SHARE = 0.10, 0.08
_APOSTROPHES = regex.compile("['`\u00b4\u02bc\u2018\u2019]")  # in words; others move splits: raise the data's FORMAT
_NO_WORD = regex.compile(r"[\p{P}\p{S}\p{Z}\p{C}]+")
_SHORT = 24  # bytes of a text that may be a class or a short answer
_SEVERAL = 10  # images of one thing, which share a caption
LEAST_REPEATED = 3
"""Rows that a text has on average, where texts are the names of classes."""
STRONGEST_FIRST = ("test", "validation", "train")


class Groups:
    """Union-find over string keys; the smallest key of a component names it, for any order of links."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def link(self, keys: Sequence[str]) -> None:
        """Unite all keys, new ones too."""
        roots = [self.find(key) for key in keys]
        smallest = min(roots)
        for root in roots:
            self._parent[root] = smallest

    def find(self, key: str) -> str:
        """The name of the component that `key` is in: the key itself when nothing was linked to it."""
        parent = self._parent.setdefault(key, key)
        while parent != self._parent[parent]:
            self._parent[key] = self._parent[parent]  # halve the path
            key, parent = parent, self._parent[parent]
        return parent


@lru_cache(maxsize=1 << 17)
def normalise(text: str) -> str:
    """Text without case, punctuation and repeated spaces, by which captions are compared.

    A text of punctuation alone keeps it. Combining marks stay: in many languages they distinguish words.
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return _NO_WORD.sub(" ", _APOSTROPHES.sub("", folded)).strip() or " ".join(folded.split())


def shared_keys(rows: Sequence[Mapping[str, Any]], leaks: Leaks) -> list[list[str]]:
    """The keys of each row: rows with the same key belong in one split. `image` and `audio` are hashes of the files.

    By `content` these are the prompt, what is translated, the image, the audio, and the text, but not a prompt of many
    rows ("Describe the image"), which is an instruction, nor a text that is a class or a short answer ("yes") to
    different inputs.
    """
    keys: list[list[str]] = [[f"group:{row['group']}"] if row["group"] else [] for row in rows]
    if leaks == "group":
        return keys
    texts = [{name: normalise(row[name]) if row[name] else "" for name in ("prompt", "text")} for row in rows]
    if leaks == "pair":
        for own, row, text in zip(keys, rows, texts, strict=True):
            own.append("pair:" + short_hash(text["prompt"], text["text"], row["image"] or "", row["audio"] or ""))
        return keys
    many = max(_SEVERAL, len(rows) // 20)
    counts = {name: Counter(text[name] for text in texts) for name in ("prompt", "text")}
    answers = Counter(
        text["text"]
        for row, text in zip(rows, texts, strict=True)
        if text["text"] and (row["prompt"] or row["image"] or row["audio"])
    )
    classes = LEAST_REPEATED * len(answers) <= answers.total()
    for own, row, text in zip(keys, rows, texts, strict=True):
        asked = bool(text["prompt"]) and counts["prompt"][text["prompt"]] <= many
        media = [f"{name}:{row[name]}" for name in ("image", "audio") if row[name]]
        count = counts["text"][text["text"]]
        few = count <= many if not _is_short(text["text"]) else count <= (2 if asked else _SEVERAL) and not classes
        own += [f"text:{text['prompt']}"] if asked else []
        own += [f"text:{normalise(row['input'])}"] if row.get("input") else []  # in whatever language it is translated
        own += [f"text:{text['text']}"] if text["text"] and (few or not (row["prompt"] or media)) else []
        own += media
    return keys


def _is_short(text: str) -> bool:
    """Whether different inputs may well have the same answer: about four words, or eight letters of Ge'ez or Han."""
    return 0 < len(text.encode()) < _SHORT


def english_key(text: str) -> str:
    """The key of an English text: `An elephant.` and `Elephant` have the same."""
    return "text:" + re.sub(r"^(a|an|the) (?=.)", "", normalise(text))


def media_key(kind: str, content: bytes) -> str:
    """The key of encoded media by their bytes; `kind` is "image" or "audio"."""
    return f"{kind}:{hashlib.sha256(content).hexdigest()}"


def short_hash(*parts: str) -> str:
    """Sixteen hex digits of the SHA-256 of the parts, joined by NUL."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def split_by_chance(group: str) -> str:
    """The split of a group by the hash of its name: 10 % test, 8 % validation, the rest train."""
    chance = int(hashlib.sha256(f"split:{group}".encode()).hexdigest()[:12], 16) / 16**12
    if chance < _TEST_SHARE:
        return "test"
    return "validation" if chance < _TEST_SHARE + _VALIDATION_SHARE else "train"


def udhr_splits(num_articles: int = 31) -> dict[str, str]:
    """The split of each article's key, article 0 being the preamble: 6 test, 3 validation, the rest train.

    By rank of the hashes and not by chance: with thirty groups the shares would vary too much.
    """
    keys = [f"{UDHR_KEY}{number}" for number in range(num_articles)]
    ranked = sorted(keys, key=lambda key: short_hash(_UDHR_SALT, key))
    names = ["test"] * _NUM_UDHR_TEST + ["validation"] * _NUM_UDHR_VALIDATION
    return {key: names[rank] if rank < len(names) else "train" for rank, key in enumerate(ranked)}


def strongest(splits: Iterable[str]) -> str:
    """Of several splits the one that keeps shared rows: test before validation before train."""
    return min(splits, key=STRONGEST_FIRST.index)
