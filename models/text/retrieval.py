"""Which pairs of a memory belong into a prompt: similar to the text, and unlike each other.

The relevance of a pair is a mean of three scores: BM25 over character n-grams (words of a language with rich
morphology have many forms), the cosine of embeddings, and the fuzzy match score that translation memories show. Of the
most relevant ones, those that repeat each other are passed over, by maximal marginal relevance (Carbonell and
Goldstein 1998, "The use of MMR, diversity-based reranking").
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from kauli.models.languages import nfc

POOL = 32
"""Candidates that `choose` should be given by each way of searching."""
NGRAM = 3
"""Characters of an n-gram, within words."""
BM25_K1, BM25_B = 1.2, 0.75
"""The usual values."""
_DIVERSITY = 0.8  # of MMR: the weight of being unlike what was chosen; four examples then cover most of a translation


@dataclass(frozen=True)
class Candidate:
    """A pair that was found for a text, in the direction of the request."""

    source: str
    target: str
    lexical: float = 0.0
    """BM25 or another score of shared words, comparable within one search."""
    vector: Any = None
    """(dim,) float32 of length 1: the embedding of `source`; None: none is known."""
    key: Any = None
    """Whatever the caller knows it by."""


def similarity(a: str, b: str) -> float:
    """The fuzzy match score of two texts: the percentage of characters that need no edit; 100 is the same text."""
    a, b = " ".join(nfc(a).split()), " ".join(nfc(b).split())
    return 100.0 if a == b else min(99.0, 100.0 * Levenshtein.normalized_similarity(a.casefold(), b.casefold()))


def choose(text: str, vector: Any, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """At most `count` of the candidates, the most useful first.

    Args:
        text: what is to be translated.
        vector: (dim,) its embedding; None: texts alone are compared.
        candidates: in any order, each once.
        count: how many are wanted.
    """
    if not candidates or count < 1:
        return []
    relevance = _relevance(text, vector, candidates)
    grams = [_grams(one.source) for one in candidates]
    left, chosen = list(range(len(candidates))), list[int]()
    alike = np.zeros(len(candidates))
    while left and len(chosen) < count:
        best = max(left, key=lambda at: (relevance[at] - _DIVERSITY * alike[at], -at))
        chosen.append(best)
        left.remove(best)
        for at in left:
            alike[at] = max(alike[at], _overlap(grams[at], grams[best]))
    return [candidates[at] for at in chosen]


def _relevance(text: str, vector: Any, candidates: Sequence[Candidate]) -> np.ndarray:
    """(N,) from 0 to 1."""
    lexical = np.array([one.lexical for one in candidates], dtype=np.float64)
    scores = [lexical / lexical.max() if lexical.max() > 0 else lexical]
    scores.append(np.array([similarity(text, one.source) / 100 for one in candidates]))
    if vector is not None:
        cosines = np.array([0.0 if one.vector is None else float(one.vector @ vector) for one in candidates])
        low = cosines.min()
        # E5's cosines lie between 0.7 and 1: what tells candidates apart is their place among the others
        scores.append((cosines - low) / max(1.0 - low, 1e-6))
    return np.asarray(np.mean(scores, axis=0))


def _grams(text: str) -> Counter[str]:
    words = f" {' '.join(nfc(text).casefold().split())} "
    return Counter(words[at : at + NGRAM] for at in range(max(1, len(words) - NGRAM + 1)))


def _overlap(a: Counter[str], b: Counter[str]) -> float:
    """Dice's coefficient of two bags of n-grams."""
    return 2 * (a & b).total() / max(1, a.total() + b.total())
