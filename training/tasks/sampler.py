"""Which examples each step takes: a pure function of lengths, seed and step, so that a cursor is just a step number.

The plan does not know how many workers there are. A step is a set of examples; workers share it out among them, and a
run that is resumed with another number of workers takes the same examples, each of an epoch exactly once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, count

import numpy as np


class Plan:
    """The steps of a run over examples of the given lengths in tokens, with a share of replayed examples mixed in.

    Indices below `len(lengths)` are examples; from there on they are replayed ones.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_tokens: int,
        seed: int,
        replay_lengths: Sequence[int] = (),
        replay_share: float = 0.0,
    ) -> None:
        assert max(lengths) <= batch_tokens, "an example is cut to fit a step before it is planned"
        self._lengths = list(lengths)
        self._replay_lengths = list(replay_lengths)
        self._replay_tokens = int(batch_tokens * replay_share) if self._replay_lengths else 0
        self._tokens = batch_tokens - self._replay_tokens
        self._seed = seed
        self.epoch = lru_cache(maxsize=4)(self._epoch)
        self._replay_epoch = lru_cache(maxsize=4)(self._replay_order)

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The steps of one epoch: all examples in a random order, as many to a step as fit, each exactly once."""
        steps: list[list[int]] = [[]]
        room = self._tokens
        for index in _shuffled(len(self._lengths), self._seed, "examples", epoch):
            if steps[-1] and self._lengths[index] > room:
                steps.append([])
                room = self._tokens
            steps[-1].append(index)
            room -= self._lengths[index]
        return steps

    def _replay_order(self, epoch: int) -> list[int]:
        return _shuffled(len(self._replay_lengths), self._seed, "replay", epoch)

    def steps(self, start: int = 0) -> Iterator[list[int]]:
        """The example indices of each step from step number `start` on, without end."""
        replay = self._replayed()
        for number, examples in enumerate(chain.from_iterable(map(self.epoch, count()))):
            step = examples + next(replay)
            if number >= start:
                yield step

    def _replayed(self) -> Iterator[list[int]]:
        """Replayed examples for each step; what a step leaves of its share, the next one has more."""
        credit, position = 0, 0
        while True:
            step: list[int] = []
            credit += self._replay_tokens
            while self._replay_tokens:
                epoch, place = divmod(position, len(self._replay_lengths))
                index = self._replay_epoch(epoch)[place]
                if self._replay_lengths[index] > credit:
                    break
                credit -= self._replay_lengths[index]
                step.append(len(self._lengths) + index)
                position += 1
            yield step


def share_out(step: Sequence[int], lengths: Sequence[int], workers: int) -> list[list[int]]:
    """A step's examples shared out among workers: longest first, each to the one with the fewest tokens."""
    shares: list[list[int]] = [[] for _ in range(workers)]
    loads = [0] * workers
    for index in sorted(step, key=lambda index: (-lengths[index], index)):
        worker = loads.index(min(loads))
        shares[worker].append(index)
        loads[worker] += lengths[index]
    return shares


def micro_batches(share: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """One worker's examples in packs of at most `tokens`, in order."""
    packs: list[list[int]] = []
    room = 0
    for index in share:
        if not packs or lengths[index] > room:
            packs.append([])
            room = tokens
        packs[-1].append(index)
        room -= lengths[index]
    return packs


def _shuffled(count: int, seed: int, what: str, epoch: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}/{what}/{epoch}".encode()).digest()
    order = np.random.default_rng(int.from_bytes(digest[:8], "big")).permutation(count)
    return [int(index) for index in order]
