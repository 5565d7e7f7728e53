"""Terms of a glossary in a text: as whole words, in any script, whatever their case.

A word is a run of letters, marks and digits; in scripts that put no spaces between words every character is one, so
that a term is found wherever it stands. A term matches the form that it is written in, not its inflections: "file" is
not found in "files", since what follows from an inflected form differs by language. A team that wants both adds both.
"""

from typing import Generic, TypeVar

import regex

from kauli.models.languages import nfc

_NO_SPACES = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_WORD = regex.compile(rf"[{_NO_SPACES}]\p{{M}}*|[\w--[{_NO_SPACES}]]+|[^\w\s]", regex.V1)

Item = TypeVar("Item")


def words(text: str) -> tuple[str, ...]:
    """The words and signs of a text, in the form in which they are compared."""
    return tuple(_WORD.findall(nfc(nfc(text).casefold())))


def occurs(term: str, text: str) -> bool:
    """Whether a term stands in a text as whole words."""
    terms: Terms[None] = Terms()
    terms.add(term, None)
    return bool(terms.find(text))


class Terms(Generic[Item]):
    """Items by their terms."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, ...], Item] = {}
        self._longest = 0

    def add(self, term: str, item: Item) -> None:
        """An item; an older one of the same term is replaced."""
        key = words(term)
        self._items[key] = item
        self._longest = max(self._longest, len(key))

    def find(self, text: str) -> list[Item]:
        """The items of the terms in a text, in its order, each once; of terms that overlap the longest."""
        found: dict[tuple[str, ...], Item] = {}
        said, at = words(text), 0
        while at < len(said):
            longest = range(min(self._longest, len(said) - at), 0, -1)
            key = next((key for length in longest if (key := said[at : at + length]) in self._items), None)
            if key is not None:
                found[key] = self._items[key]
            at += len(key) if key else 1
        return list(found.values())
