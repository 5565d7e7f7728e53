"""Hot words: words that a beam search is drawn to, such as names that the recogniser has never seen.

Each token that continues a hot word earns a bonus, which is taken back where the word is not completed (contextual
biasing of shallow fusion: Zhao et al. 2019, Interspeech, "Shallow-Fusion End-to-End Contextual Biasing"). What a token
earns depends on the tokens before it alone, so that paths need no state.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

BONUS = 2.0
"""Nats for each token of a hot word."""
MOST_WORDS, MOST_LETTERS = 50, 64


def hot_words_of(text: str) -> tuple[str, ...]:
    """The words of a text with commas or line ends between them, each once."""
    return tuple(dict.fromkeys(one.strip() for one in text.replace("\n", ",").split(",") if one.strip()))


def check_hot_words(words: Sequence[str]) -> None:
    """Raise ValueError for more or longer words than are allowed."""
    if len(words) > MOST_WORDS:
        raise ValueError(f"{len(words)} words: at most {MOST_WORDS} are allowed")
    if longest := next((word for word in words if len(word) > MOST_LETTERS), None):
        raise ValueError(f"'{longest}' has {len(longest)} characters: at most {MOST_LETTERS} are allowed")


class HotWords:
    """A scorer of tokens (`kauli.models.engine.beams.NextTokens`), and the tokens that it would like to see."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        """`words`: the tokens of each spelling."""
        self._whole = {tuple(word) for word in words if word}
        self._begun = {word[:size] for word in self._whole for size in range(1, len(word))}
        self._next: dict[tuple[int, ...], set[int]] = {}
        for word in self._whole:
            for at, token in enumerate(word):
                self._next.setdefault(word[:at], set()).add(token)
        self._longest = max(map(len, self._whole), default=1)

    def history(self, tokens: Sequence[int]) -> list[int]:
        """As many of the last tokens as the longest hot word has."""
        last = list(tokens[-self._longest :])
        return [-1] * (self._longest - len(last)) + last

    def log_probs(self, histories: Any, candidates: Any) -> Any:
        """(H, C) what the candidates (H, C) earn after the histories (H, n), in nats."""
        earned = np.zeros(candidates.shape)
        for row, history in enumerate(histories.tolist()):
            held = self._held(history)
            wanted = set(self.wanted(history))
            earned[row] = [
                self._completed(history, token) + self._held([*history, token]) - held if token in wanted else -held
                for token in candidates[row].tolist()
            ]
        return BONUS * earned

    def wanted(self, history: Sequence[int]) -> list[int]:
        """The tokens that begin a hot word or continue one."""
        found = set(self._next.get((), ()))
        for size in range(1, min(len(history), self._longest) + 1):
            found |= self._next.get(tuple(history[-size:]), set())
        return sorted(found)

    def _held(self, history: Sequence[int]) -> int:
        """The tokens of the longest hot word that has begun at the end of a history and is not complete."""
        sizes = range(min(len(history), self._longest - 1), 0, -1)
        return next((size for size in sizes if tuple(history[-size:]) in self._begun), 0)

    def _completed(self, history: Sequence[int], token: int) -> int:
        """The tokens of the longest hot word that `token` completes."""
        end = [*history, token]
        sizes = range(min(len(end), self._longest), 0, -1)
        return next((size for size in sizes if tuple(end[-size:]) in self._whole), 0)
