"""From the logits of one position of each row to the next tokens, all rows at once, each with its own settings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LIKELIEST = 1024  # tokens sorted for top-p; where they don't hold its mass, a row's whole vocabulary is sorted


@dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen."""

    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens whose mass reaches this (Holtzman et al. 2020, arXiv 1904.09751)."""
    top_k: int = 0
    """The number of likeliest tokens that are kept; 0: all."""
    seed: int | None = None
    repetition_penalty: float = 1.0
    """Of CTRL (Keskar et al. 2019, arXiv 1909.05858): for tokens of the prompt or the answer so far."""
    min_tokens: int = 0
    ignore_eos: bool = False
    no_repeat: int = 0
    """Length of token runs that may not occur twice in an answer (Paulus et al. 2017, arXiv 1705.04304); 0: any."""
    min_p: float = 0.0
    """Only tokens whose probability is this share of the likeliest one's (Nguyen et al. 2024, arXiv 2407.01082)."""
    frequency_penalty: float = 0.0
    """Taken from a token's score for each time that it is in the answer so far."""
    presence_penalty: float = 0.0
    """Taken once from the score of each token that is in the answer so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Tokens, and what is added to their scores."""

    @property
    def cut(self) -> bool:
        """Whether only some of the likeliest tokens are drawn from."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class Draw:
    """One row's choice of tokens: its settings, its random numbers, its earlier tokens."""

    def __init__(self, sampling: Sampling, ends: frozenset[int], prompt: Sequence[int], index: int = 0) -> None:
        self.sampling = sampling
        self.count = 0
        self._ends = sorted(ends)
        # Drawn on the CPU, one number a token: the same seed gives the same on every device, alone or in a batch.
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed((sampling.seed + index * 0x9E3779B97F4A7C15) % 2**63)
        self.earlier = sorted(set(prompt)) if sampling.repetition_penalty != 1.0 else []
        self._answer: list[int] = []
        self._followed: dict[tuple[int, ...], list[int]] = {}
        self.added: dict[int, float] = dict(sampling.logit_bias)
        """What is added to the scores of tokens now."""
        self._present: set[int] = set()

    def forbidden(self) -> list[int]:
        """The tokens that may not come next."""
        early = self.count < self.sampling.min_tokens
        ends = self._ends if early or self.sampling.ignore_eos else []
        size = self.sampling.no_repeat
        return ends + self._followed.get(self._tail(size - 1), []) if size else ends

    def _tail(self, size: int) -> tuple[int, ...]:
        return tuple(self._answer[len(self._answer) - size :])

    def uniform(self) -> float:
        """The next random number in [0, 1)."""
        return float(torch.rand((), generator=self._random, dtype=torch.float64))

    def took(self, token: int) -> None:
        """Remember a token."""
        self.count += 1
        if size := self.sampling.no_repeat:
            if len(self._answer) >= size - 1:
                self._followed.setdefault(self._tail(size - 1), []).append(token)
            self._answer.append(token)
        if self.sampling.repetition_penalty != 1.0 and token not in self.earlier:
            self.earlier.append(token)
        if self.sampling.frequency_penalty or self.sampling.presence_penalty:
            first = self.sampling.presence_penalty * (token not in self._present)
            self.added[token] = self.added.get(token, 0.0) - self.sampling.frequency_penalty - first
            self._present.add(token)


def choose(logits: Tensor, rows: Sequence[Draw]) -> list[int]:
    """The next token of each row from logits (rows, vocabulary), float32, which are changed in place."""
    _restrict(logits, rows)
    chosen = logits.argmax(dim=-1)
    warm = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
    if warm:
        # Rows that are restricted to a mass or a number are drawn in order of likelihood, the others in that of the
        # vocabulary: which of the two depends on the row alone, so that a batch doesn't change its answer.
        cut = [place for place in warm if rows[place].sampling.cut]
        plain = [place for place in warm if place not in cut]
        for places, draw in ((cut, _draw_cut), (plain, _draw_plain)):
            if places:
                scores = logits[places] / _column(logits, [rows[place].sampling.temperature for place in places])
                uniform = _column(logits, [rows[place].uniform() for place in places]).double()
                chosen[places] = draw(scores, uniform, [rows[place].sampling for place in places])
    tokens: list[int] = chosen.tolist()
    for row, token in zip(rows, tokens, strict=True):
        row.took(token)
    return tokens


def _restrict(logits: Tensor, rows: Sequence[Draw]) -> None:
    """Repetition penalties, what is added to scores, and tokens that may not come."""
    places = [place for place, row in enumerate(rows) for _ in row.earlier]
    if places:
        tokens = [token for row in rows for token in row.earlier]
        penalty = torch.tensor([rows[place].sampling.repetition_penalty for place in places], device=logits.device)
        scores = logits[places, tokens]
        # A positive score is divided, a negative one multiplied: both make the token less likely.
        logits[places, tokens] = torch.where(scores > 0, scores / penalty, scores * penalty)
    added = [(place, token, value) for place, row in enumerate(rows) for token, value in row.added.items()]
    if added:
        at, tokens, values = (list(column) for column in zip(*added, strict=True))
        logits[at, tokens] += torch.tensor(values, device=logits.device)
    forbidden = [(place, token) for place, row in enumerate(rows) for token in row.forbidden()]
    if forbidden:
        logits[[place for place, _ in forbidden], [token for _, token in forbidden]] = float("-inf")


def _draw_plain(scores: Tensor, uniform: Tensor, settings: Sequence[Sampling]) -> Tensor:
    return _at_mass(torch.softmax(scores, dim=-1), uniform)


def _draw_cut(scores: Tensor, uniform: Tensor, settings: Sequence[Sampling]) -> Tensor:
    vocabulary = scores.shape[1]
    probabilities = torch.softmax(scores, dim=-1)
    top_k = _column(scores, [float(min(one.top_k or vocabulary, vocabulary)) for one in settings])
    top_p = _column(scores, [max(one.top_p, 1e-9) for one in settings])  # at 0 the likeliest token is left
    min_p = _column(scores, [one.min_p for one in settings])
    kept = min(_LIKELIEST, vocabulary)
    chosen, settled = _draw_likeliest(probabilities, uniform, top_k, top_p, min_p, kept)
    if kept < vocabulary and not bool(settled.all()):
        # Those rows alone: among equally likely tokens the order depends on how many are sorted.
        left = ~settled
        cuts = top_k[left], top_p[left], min_p[left]
        chosen[left] = _draw_likeliest(probabilities[left], uniform[left], *cuts, vocabulary)[0]
    return chosen


def _draw_likeliest(
    probabilities: Tensor, uniform: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, kept: int
) -> tuple[Tensor, Tensor]:
    """(rows,) tokens drawn among the `kept` likeliest, and whether that is all which a row's cuts leave."""
    vocabulary = probabilities.shape[1]
    likeliest, order = probabilities.topk(kept, dim=-1)
    likeliest = likeliest * (torch.arange(kept, device=probabilities.device) < top_k)
    # Top-p is a share of what top-k left.
    whole = torch.where(top_k < vocabulary, likeliest.double().sum(-1, keepdim=True), 1.0)
    mass = likeliest.double().cumsum(-1)
    settled = (top_k <= kept) | ((top_k == vocabulary) & (mass[:, -1:] >= top_p * whole))
    least = min_p * likeliest[:, :1]
    settled |= likeliest[:, -1:] < least
    likeliest = likeliest * (mass - likeliest < top_p * whole) * (likeliest >= least)
    return order.gather(1, _at_mass(likeliest, uniform)[:, None])[:, 0], settled[:, 0]


def _at_mass(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """(rows,): the place at which the cumulated mass passes `uniform` (rows, 1) of the whole."""
    mass = probabilities.double().cumsum(-1)
    places = torch.searchsorted(mass, uniform * mass[:, -1:], right=True)
    # Rounding may point behind the last place that has any mass.
    last = (probabilities > 0).long().mul(torch.arange(1, mass.shape[1] + 1, device=mass.device)).amax(-1) - 1
    return torch.minimum(places[:, 0], last)


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32)[:, None]
