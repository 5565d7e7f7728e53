"""What a memory holds for one direction of translation, in RAM: found by words, by embeddings, and by terms."""

from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kauli.models.languages import nfc
from kauli.models.text.memory_terms import Terms
from kauli.models.text.retrieval import BM25_B, BM25_K1, NGRAM, POOL, Candidate


@dataclass(frozen=True)
class Entry:
    """A pair of a memory in the direction of the request."""

    id: str
    source: str
    target: str
    origin: str


class Bm25:
    """BM25 over character n-grams within words, of texts that join one by one."""

    def __init__(self) -> None:
        # n-gram -> the texts that have it, and how often each has it
        self._postings: dict[str, tuple[array[int], array[float]]] = defaultdict(lambda: (array("i"), array("f")))
        self._lengths = array("f")

    def add(self, text: str) -> None:
        """The next text."""
        grams = _grams(text)
        for gram, count in grams.items():
            places, counts = self._postings[gram]
            places.append(len(self._lengths))
            counts.append(count)
        self._lengths.append(grams.total())

    def scores(self, text: str) -> np.ndarray:
        """(N,) float32: how similar each text is to this one; 0 for one that shares nothing with it."""
        total = len(self._lengths)
        scores = np.zeros(total, dtype=np.float32)
        # Copied: an array can't grow while numpy looks at its memory
        lengths = np.array(self._lengths, dtype=np.float32)
        norm = BM25_K1 * (1 - BM25_B + BM25_B * lengths / max(float(lengths.mean()) if total else 0.0, 1e-9))
        for gram in _grams(text):
            if gram in self._postings:
                places, counts = (np.array(part) for part in self._postings[gram])
                rarity = np.log1p((total - len(places) + 0.5) / (len(places) + 0.5))
                scores[places] += rarity * counts * (BM25_K1 + 1) / (counts + norm[places])
        return scores


class MemoryIndex:
    """The pairs and terms of one direction. Not for several threads at once."""

    def __init__(self, dim: int) -> None:
        """`dim` is the width of the vectors."""
        self._entries: list[Entry | None] = []
        self._vectors: Any = np.zeros((0, dim), dtype=np.float32)
        self._bm25 = Bm25()
        self._places: dict[str, int] = {}
        self._dead: list[int] = []
        self._same: dict[str, list[int]] = defaultdict(list)
        self._glossary: dict[str, Entry] = {}
        self._terms: Terms[Entry] | None = None

    def __len__(self) -> int:
        """How many pairs it holds, without terms."""
        return len(self._places)

    @property
    def worn(self) -> bool:
        """Whether most of it are pairs that were removed: a new one would be smaller."""
        return len(self._dead) > len(self._places) + 1000

    def add(self, entries: Sequence[Entry], vectors: np.ndarray) -> None:
        """Pairs, with the embeddings (N, dim) of their sources."""
        start = len(self._entries)
        if start + len(entries) > len(self._vectors):  # grown by half: one more pair copies nothing
            grown = np.zeros((max(start + len(entries), start * 3 // 2), vectors.shape[1]), dtype=np.float32)
            grown[:start] = self._vectors[:start]
            self._vectors = grown
        self._vectors[start : start + len(entries)] = vectors
        for place, entry in enumerate(entries, start):
            self._bm25.add(entry.source)
            self._places[entry.id] = place
            self._same[plain(entry.source)].append(place)
        self._entries += entries

    def add_terms(self, entries: Iterable[Entry]) -> None:
        """Terms of the glossary."""
        self._glossary |= {entry.id: entry for entry in entries}
        self._terms = None

    def remove(self, ids: Iterable[str]) -> None:
        """Pairs and terms; unknown ids are passed over."""
        for id in ids:
            place = self._places.pop(id, None)
            if place is not None:
                self._entries[place] = None
                self._vectors[place] = 0  # its cosine is 0 from now on
                self._dead.append(place)
            if self._glossary.pop(id, None) is not None:
                self._terms = None

    def same(self, text: str) -> list[Entry]:
        """The pairs of this very text, but for white space; the newest first."""
        found = (self._entries[place] for place in reversed(self._same.get(plain(text), [])))
        return [entry for entry in found if entry is not None]

    def near(self, text: str, vector: np.ndarray) -> list[Candidate]:
        """Pairs whose sources share n-grams with a text, or whose embeddings are close to its `vector` (dim,).

        A candidate's key is its `Entry`.
        """
        lexical = self._bm25.scores(text)
        lexical[self._dead] = 0
        cosines = self._vectors[: len(self._entries)] @ vector
        places = dict.fromkeys([*self._best(lexical), *self._best(cosines)])
        return [
            Candidate(entry.source, entry.target, float(lexical[place]), self._vectors[place].copy(), entry)
            for place in places
            if (entry := self._entries[place]) is not None
        ]

    def terms(self, text: str) -> list[Entry]:
        """The glossary's terms in a text; see `kauli.models.text.memory_terms`."""
        if self._terms is None:
            self._terms = Terms()
            for entry in self._glossary.values():
                self._terms.add(entry.source, entry)
        return self._terms.find(text)

    def _best(self, scores: np.ndarray) -> list[int]:
        """The places of the `POOL` largest scores over 0, the largest first; of equal ones the newer."""
        found = np.flatnonzero(scores > 0)
        if len(found) > POOL:
            found = found[np.argpartition(-scores[found], POOL)[:POOL]]
        return sorted(found.tolist(), key=lambda at: (-scores[at], -at))


def plain(text: str) -> str:
    """A text in the form in which two are the same: normal form C, without extra white space."""
    return " ".join(nfc(text).split())


def _grams(text: str) -> Counter[str]:
    spaced = (f" {word} " for word in nfc(text).casefold().split())
    return Counter(word[at : at + NGRAM] for word in spaced for at in range(len(word) - NGRAM + 1))
