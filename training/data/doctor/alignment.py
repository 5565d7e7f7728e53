"""IBM Model 1 of many pairs of texts, learned on some of them and asked about others.

Shapes: L links, each a source word with a target word of one pair; S target words over all pairs.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kauli.training.data.doctor.examined import Floats
from kauli.training.data.groups import normalise

_LETTERS = 5  # of a word that are looked at
_ROUNDS = 5
_MOST_WORDS = 40  # of a text
_DOUBT = 1.0  # occurrences that a word needs, to be believed as much as to be doubted


class Links:
    """All links of source and target words of some pairs."""

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self._pairs = len(sources)
        known: tuple[dict[str, int], dict[str, int]] = ({"": 0}, {})
        words = [[_ids(text, ids) for text in texts] for texts, ids in zip((sources, targets), known, strict=True)]
        source, target, slot, pair, sizes = [], [], [], [], []
        count = 0
        for number, (ours, theirs) in enumerate(zip(*words, strict=True)):
            ours = [0, *ours]  # the empty word, which translates what has no counterpart
            source.append(np.tile(ours, len(theirs)))
            target.append(np.repeat(theirs, len(ours)))
            slot.append(np.repeat(np.arange(count, count + len(theirs)), len(ours)))
            pair.append(np.full(len(theirs), number))
            sizes.append(np.full(len(theirs), len(ours)))
            count += len(theirs)
        self._source, self._slot = _joined(source), _joined(slot)
        self._target = _joined(target)
        self._pair_of_slot, self._size_of_slot = _joined(pair), _joined(sizes)
        self._target_of_slot = np.zeros(count, dtype=np.int64)
        self._target_of_slot[self._slot] = self._target
        types, self._type = np.unique(self._source * (len(known[1]) + 1) + self._target, return_inverse=True)
        self._source_of_type = types // (len(known[1]) + 1)
        self._num_source, self._num_target = len(known[0]), len(known[1])

    def evidence(self, learned: NDArray[np.int64], scored: NDArray[np.int64]) -> Floats:
        """(len(scored),) natural logarithm of how much likelier the targets are with their sources than by themselves.

        A word that the learned pairs lack says nothing; one that they have once may well have another translation.
        """
        inside = np.zeros(self._pairs, dtype=bool)
        inside[learned] = True
        slots = inside[self._pair_of_slot]
        translation = self._fitted(slots)
        there = np.bincount(self._source[slots[self._slot]], minlength=self._num_source) > 0
        counts = np.bincount(self._target_of_slot[slots], minlength=self._num_target).astype(np.float64)
        alone = counts / max(1.0, counts.sum())
        # The empty word is known everywhere: alone it is no evidence
        informed = np.bincount(self._slot, there[self._source] & (self._source > 0), len(slots)) > 0
        known = (counts[self._target_of_slot] > 0) & informed
        together = np.bincount(self._slot, translation[self._type], len(slots)) / self._size_of_slot
        doubt = _DOUBT / (_DOUBT + counts[self._target_of_slot])
        base = np.maximum(alone[self._target_of_slot], 1e-12)
        ratio = np.log((1 - doubt) * together / base + doubt)
        totals = np.bincount(self._pair_of_slot, np.where(known, ratio, 0.0), self._pairs)
        return np.asarray(totals[scored])

    def _fitted(self, slots: NDArray[np.bool_]) -> Floats:
        """The probability of each type of link, by expectation maximisation on the links of some target words."""
        used = slots[self._slot]
        slot, kind = self._slot[used], self._type[used]
        chance = np.ones(len(self._source_of_type))
        for _ in range(_ROUNDS):
            weight = chance[kind]
            weight = weight / np.bincount(slot, weight, len(slots))[slot]
            mass = np.bincount(kind, weight, len(chance))
            chance = mass / np.maximum(np.bincount(self._source_of_type, mass), 1e-12)[self._source_of_type]
        return np.asarray(chance)


def _ids(text: str, known: dict[str, int]) -> list[int]:
    words = [word[:_LETTERS] for word in normalise(text).split()[:_MOST_WORDS]]
    return [known.setdefault(word, len(known)) for word in words]


def _joined(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)
