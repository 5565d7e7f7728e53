"""From the logits of one position to the next token, with each request's own settings."""

import torch
from torch import Tensor


class Sampler:
    """One request's choice of tokens; `seen` are the tokens so far, prompt included, for the repetition penalty."""

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        repetition_penalty: float = 1.0,
        min_tokens: int = 0,
        ends: frozenset[int] = frozenset(),
        ignore_ends: bool = False,
    ) -> None:
        self.temperature, self.top_p, self.top_k = temperature, top_p, top_k
        self.repetition_penalty = repetition_penalty
        self.min_tokens, self.ends, self.ignore_ends = min_tokens, ends, ignore_ends
        # Drawn on the CPU in any case: the same seed gives the same tokens on every device, alone or in company.
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    def choose(self, logits: Tensor, seen: set[int], new_tokens: int) -> int:
        """The next token from logits (vocabulary,), after `new_tokens` of the answer."""
        logits = logits.float()
        if self.repetition_penalty != 1.0 and seen:
            index = torch.tensor(sorted(seen), device=logits.device)
            scores = logits[index]
            # CTRL (Keskar et al. 2019, arXiv 1909.05858): what speaks for a seen token is divided, what is against it
            # multiplied.
            scores = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
            logits = logits.index_copy(0, index, scores)
        if self.ends and (self.ignore_ends or new_tokens < self.min_tokens):
            logits = logits.index_fill(0, torch.tensor(sorted(self.ends), device=logits.device), float("-inf"))
        if self.temperature == 0:
            return int(logits.argmax())
        probabilities = self._truncate(torch.softmax(logits.double().cpu() / self.temperature, dim=-1))
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def _truncate(self, probabilities: Tensor) -> Tensor:
        """Keep the `top_k` likeliest tokens and the fewest whose mass reaches `top_p` (Holtzman et al. 2020)."""
        if self.top_k:
            least = probabilities.topk(min(self.top_k, len(probabilities))).values[-1]
            probabilities = probabilities.where(probabilities >= least, 0.0)
        if self.top_p < 1:
            mass, order = (probabilities / probabilities.sum()).sort(descending=True)
            probabilities = probabilities.index_fill(0, order[mass.cumsum(0) - mass >= self.top_p], 0.0)
        return probabilities
