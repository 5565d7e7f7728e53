"""Beam search: the most probable answers of a request are extended together, each in its own slot of the cache.

    score = sum of log p(token) + weight x sum of log p_lm(token) + bonus x tokens

This is shallow fusion (Gulcehre et al. 2015, arXiv 1503.03535) with a reward for length. A language model scores the
likeliest candidates of each answer alone, those of all requests with that language model at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from kauli.models.requests import BeamSearch

CANDIDATES = 16
"""Likeliest tokens after each answer that are looked at, or twice the beam's size where that is more."""

Array = NDArray[Any]


class NextTokens(Protocol):
    """A language model of tokens, such as `kauli.models.speech.token_lm.TokenModel`."""

    def history(self, tokens: Sequence[int]) -> list[int]:
        """What the next token after these depends on; always of one length."""

    def log_probs(self, histories: Array, candidates: Array) -> Array:
        """(H, C) log probabilities of candidates (H, C) after histories (H, n)."""


@dataclass(frozen=True)
class Path:
    """An answer so far."""

    tokens: tuple[int, ...] = ()
    score: float = 0.0
    logprobs: tuple[float, ...] = ()
    """What the model itself gave each token."""


@dataclass
class Beam:
    """The paths of one request: `paths[i]` is in slot i of its own slots; None: that slot is free."""

    search: BeamSearch
    ends: frozenset[int]
    limit: int
    """Tokens of the longest answer."""
    paths: list[Path | None] = field(default_factory=list)
    ended: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = [Path(), *[None] * (self.search.size - 1)]

    @property
    def live(self) -> list[int]:
        """The slots that hold a path."""
        return [place for place, path in enumerate(self.paths) if path is not None]

    def advance(self, candidates: Array, scores: Array, logprobs: Array) -> list[tuple[int, int]]:
        """Extend the live paths; (slot, slot whose contents it takes over) for each new one.

        All are (live, C): the scores those of the candidates alone, `logprobs` the model's own. A slot whose contents
        are taken over keeps one of the paths that begin with its own, so that contents may be copied in any order.
        """
        live = self.live
        before = [self.paths[place] for place in live]
        total = scores + np.array([path.score for path in before if path is not None])[:, None]

        def longer(row: int, column: int) -> Path:
            path = before[row]
            assert path is not None
            token, cost = int(candidates[row, column]), float(logprobs[row, column])
            return Path((*path.tokens, token), float(total[row, column]), (*path.logprobs, cost))

        chosen: list[tuple[int, int]] = []
        for rank, flat in enumerate(np.argsort(-total, axis=None, kind="stable").tolist()):
            row, column = divmod(flat, total.shape[1])
            if len(chosen) == self.search.size or not np.isfinite(total[row, column]):
                break
            if int(candidates[row, column]) not in self.ends:
                chosen.append((row, column))
            elif rank < self.search.size:
                self.ended.append(longer(row, column))
        first = {row: at for at, (row, _) in reversed(list(enumerate(chosen)))}
        stay = {at: live[row] for row, at in first.items()}
        free = [place for place in range(self.search.size) if place not in stay.values()]
        self.paths = [None] * self.search.size
        moves = []
        for at, (row, column) in enumerate(chosen):
            place = stay[at] if at in stay else free.pop(0)
            self.paths[place] = longer(row, column)
            moves.append((place, live[row]))
        return moves

    def best(self) -> Path | None:
        """The answer, once no live path can be better or as many have ended as the beam holds; else None."""
        live = [path for path in self.paths if path is not None]
        length = max((len(path.tokens) for path in live), default=self.limit)
        if not live or length >= self.limit or len(self.ended) >= self.search.size:
            return max(self.ended or live, key=lambda path: path.score, default=Path())
        reach = max(path.score for path in live) + max(self.search.bonus, 0.0) * (self.limit - length)
        best = max(self.ended, key=lambda path: path.score, default=None)
        return best if best is not None and best.score >= reach else None


def repeats(tokens: Sequence[int], size: int) -> list[int]:
    """The tokens after which a run of `size` tokens would occur twice."""
    if not size or len(tokens) < size:
        return []
    tail = tuple(tokens[len(tokens) - size + 1 :])
    return [tokens[at + size - 1] for at in range(len(tokens) - size + 1) if tuple(tokens[at : at + size - 1]) == tail]


def fused(searches: Sequence[BeamSearch], answers: Sequence[Sequence[int]], tokens: Array, scores: Array) -> Array:
    """(H, C) scores of candidates with those of each answer's language model and bonus; ends are without bonus.

    `scores` are the model's own log probabilities of `tokens`, both (H, C).
    """
    out: Array = scores + np.array([[search.bonus] for search in searches])
    groups: dict[int, list[tuple[int, NextTokens, float]]] = {}
    for row, search in enumerate(searches):
        for scorer, weight in ((search.scorer, search.weight), (search.bias, 1.0)):
            if scorer is not None and weight:
                groups.setdefault(id(scorer), []).append((row, scorer, weight))
    for group in groups.values():
        rows, scorer = [row for row, *_ in group], group[0][1]
        histories = np.array([scorer.history(answers[row]) for row in rows], dtype=np.int64)
        weights = np.array([[weight] for *_, weight in group])
        out[rows] += weights * scorer.log_probs(histories, tokens[rows])
    return out
