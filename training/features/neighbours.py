"""The pairs of the training split that are similar to a text: for the examples in the prompts of translations.

A search over all rows at once, of the same pairs and by the same choice as a memory's in serving
(`kauli.models.text.retrieval`).
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from kauli.models.languages import nfc
from kauli.models.text.retrieval import BM25_B, BM25_K1, NGRAM, POOL, Candidate, choose

_AT_ONCE = 256  # texts whose scores against all pairs are in memory


class Neighbours:
    """Pairs of texts, searched by the first."""

    def __init__(self, pairs: Sequence[tuple[str, str]], groups: Sequence[str], vectors: Any = None) -> None:
        """`groups` are those of the pairs; `vectors` (N, dim) embed their first texts, None: texts alone count."""
        self._pairs, self._groups, self._vectors = pairs, np.asarray(groups, dtype=object), vectors

    def of(
        self, texts: Sequence[str], groups: Sequence[str], count: int, vectors: Any = None
    ) -> Iterator[list[Candidate]]:
        """For each text at most `count` pairs, the most useful first; never one of the text's own group.

        `key` of a candidate is its number among the pairs. `vectors` (M, dim) embed the texts.
        """
        if not self._pairs or not count:
            yield from ([] for _ in texts)
            return
        vectorizer, weights = self._index
        for start in range(0, len(texts), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            asked = vectorizer.transform([nfc(text) for text in texts[part]])
            asked.data[:] = 1
            lexical = (asked @ weights).toarray()
            close = None if vectors is None or self._vectors is None else vectors[part] @ self._vectors.T
            for row, (text, group) in enumerate(zip(texts[part], groups[part], strict=True)):
                allowed = self._groups != group
                pool = _best(lexical[row], allowed)
                if close is not None:
                    pool = list(dict.fromkeys([*pool, *_best(close[row], allowed)]))
                candidates = [
                    Candidate(
                        *self._pairs[at], float(lexical[row, at]), None if close is None else self._vectors[at], at
                    )
                    for at in pool
                ]
                yield choose(text, None if close is None else vectors[start + row], candidates, count)

    @cached_property
    def _index(self) -> tuple[Any, Any]:
        """The n-grams, and (n-grams, N) their weights by BM25 in each pair."""
        vectorizer = CountVectorizer(analyzer="char_wb", ngram_range=(NGRAM, NGRAM), lowercase=True, dtype=np.float32)
        counts = vectorizer.fit_transform([nfc(source) for source, _ in self._pairs]).tocoo()
        total = counts.shape[0]
        seen = np.bincount(counts.col, minlength=counts.shape[1])
        lengths = np.bincount(counts.row, counts.data, minlength=total)
        norm = BM25_K1 * (1 - BM25_B + BM25_B * lengths / max(lengths.mean(), 1e-9))
        rarity = np.log1p((total - seen + 0.5) / (seen + 0.5))
        data = counts.data * (BM25_K1 + 1) / (counts.data + norm[counts.row]) * rarity[counts.col]
        return vectorizer, sparse.csr_matrix((data, (counts.row, counts.col)), counts.shape).T.tocsr()


def _best(scores: np.ndarray, allowed: np.ndarray) -> list[int]:
    """The places of the largest scores over 0 among those allowed, the largest first; of equal ones the earlier."""
    masked = np.where(allowed, scores, -np.inf)
    few = np.argpartition(-masked, min(POOL, len(masked) - 1))[: POOL + 1]
    return [int(at) for at in sorted(few, key=lambda at: (-masked[at], at))[:POOL] if masked[at] > 0]
