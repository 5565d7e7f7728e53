"""Can a base spell a language? Its tokenizer on the training rows, beside the same on English."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kauli.models.bases.find import Base, known_bases
from kauli.models.engine.detokenize import TokenBytes
from kauli.models.languages import display_name, nfc
from kauli.models.text.language_model import load_tokenizer
from kauli.training.tasks.base import Row

FEWEST_LETTERS = 0.9
"""The share of a text's letters that a base must have in its vocabulary: below it, it cannot spell the language."""
FEWEST_BYTES = 0.6
"""Bytes a token over those of English: below it, words are in more pieces than a base has for a language it knows."""
ENGLISH = (
    "All of us learn to speak before we learn to write. Our mothers and fathers tell us stories, and later we read "
    "them to our own children. A language that is written down can be taught, searched and kept, even when those who "
    "spoke it are gone. That is why every village with a school wants books in its own words."
)
_MOST_READ = 1000  # texts


@dataclass(frozen=True)
class Spelling:
    """How a tokenizer writes texts."""

    letters: float
    """The share of the letters, as often as they occur, that a token stands for: single bytes of a letter don't."""
    bytes_per_token: float
    tokens_per_word: float


class Speller:
    """The tokenizer of a base."""

    def __init__(self, base: Base) -> None:
        self._tokenizer = load_tokenizer(base.folder)
        of = TokenBytes(self._tokenizer)
        self._known = {of(token).strip(b" ") for token in range(len(self._tokenizer))}

    def spelling(self, texts: Iterable[str]) -> Spelling:
        """Of texts, at least one of them with a word."""
        tokens = size = words = 0
        letters: Counter[str] = Counter()
        for text in map(nfc, texts):
            tokens += len(self._tokenizer(text, add_special_tokens=False).input_ids)
            size += len(text.encode())
            words += len(text.split())
            letters.update(char for char in text if unicodedata.category(char)[0] in "LM")
        known = sum(count for letter, count in letters.items() if letter.encode() in self._known)
        return Spelling(known / max(1, letters.total()), size / max(1, tokens), tokens / max(1, words))


def spelling_warnings(base: Base, rows: Sequence[Row]) -> list[str]:
    """A sentence for each language of the rows that the base cannot spell, or has in small pieces."""
    speller, told = Speller(base), []
    english = speller.spelling([ENGLISH])
    for tag in sorted({row["language"] for row in rows} - {"en"}):
        texts = [row["text"] for row in rows if row["language"] == tag]
        found = speller.spelling(texts[:: -(-len(texts) // _MOST_READ)])
        if found.letters < FEWEST_LETTERS:
            fault = (
                f"cannot spell {display_name(tag)}: its vocabulary has {found.letters:.0%} of the letters of this data"
            )
        elif found.bytes_per_token < FEWEST_BYTES * english.bytes_per_token:
            fault = f"does not know {display_name(tag)}: it writes the words in small pieces"
        else:
            continue
        told.append(
            f"{base.name} {fault} ({found.bytes_per_token:.1f} bytes a token, English {english.bytes_per_token:.1f}; "
            f"{found.tokens_per_word:.1f} tokens a word, English {english.tokens_per_word:.1f}). Expect poor texts. "
            f"{_instead(base, tag)}"
        )
    return told


def _instead(base: Base, tag: str) -> str:
    """Which base would do."""
    fetched = [
        f"{name} (once: kauli fetch {name}{' --accept-terms' if card.terms else ''}; then --set base={name})"
        for name, card in known_bases().items()
        if name != base.name and {base.task} & set(card.tasks) and {"mul", tag} & set(card.languages)
    ]
    hub = f"a model of the Hugging Face hub that was trained on {display_name(tag)} (--set base=ORG/NAME)"
    return f"Better: {', or '.join([*fetched, hub])}."
