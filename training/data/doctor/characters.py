"""A character n-gram model of texts, by which others are scored: cheap, and with no base.

The model is the one of the recogniser's language model (`kauli.models.speech.token_lm`), over characters.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kauli.models.speech.token_lm import fit
from kauli.training.data.doctor.examined import Floats

ORDER = 6
_END = 0
_BITS = float(np.log2(np.e))


class CharacterModel:
    """Interpolated Kneser-Ney over characters, each text with its end."""

    def __init__(self, texts: Sequence[str], alphabet: str = "", order: int = ORDER) -> None:
        """`alphabet` has the characters that are known beforehand; all others have one probability together."""
        known = sorted(set(alphabet).union(*texts))
        self._ids = {char: place for place, char in enumerate(known, start=1)}
        self._unknown = len(known) + 1
        size, order = len(known) + 2, max(2, order)
        tokens = [self._tokens(text) for text in texts]
        self._model = fit(tokens, vocabulary=size, end=_END, order=order, language="und", tokenizer="characters")
        self._start = size

    def _tokens(self, text: str) -> list[int]:
        return [self._ids.get(char, self._unknown) for char in text]

    def bits(self, texts: Sequence[str]) -> Floats:
        """(N,) bits that each text costs, with its end."""
        size = max(2, self._model.order)
        lead = [-1] * (size - 2) + [self._start]
        whole = [np.array([*lead, *self._tokens(text), _END], dtype=np.int64) for text in texts]
        windows: Any = [np.lib.stride_tricks.sliding_window_view(one, size) for one in whole]
        counts = [len(one) for one in windows]
        if not counts:
            return np.zeros(0)
        flat = np.concatenate(windows)
        costs = -_BITS * self._model.log_probs(flat[:, :-1], flat[:, -1:])[:, 0].astype(np.float64)
        return np.asarray(np.add.reduceat(costs, np.concatenate([[0], np.cumsum(counts)[:-1]])))
