"""The loss over the tokens that a data set holds and a sample of all others, instead of a base's whole vocabulary.

Half of the computation of a small base with a large vocabulary is its output layer: Gemma 3 270M has 262,144 tokens,
of which the texts of one language hold some thousands. The other tokens are never a target, but they must stay
unlikely: without them, a model learns to answer with words of other languages. So each pass draws some of them, whose
terms in the softmax stand for all, by importance sampling (Bengio and Senecal 2003, "Quick training of probabilistic
neural nets by importance sampling"). Scores and validation use the whole vocabulary.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.engine.packing import Batch, Document, pack

SAMPLE = 16_384
"""Tokens beside the seen ones that a pass draws."""


class SeenSoftmax(nn.Module):
    """A language model's packed losses, with the cross-entropy among seen and drawn tokens."""

    weight: Tensor
    places: Tensor
    others: Tensor

    def __init__(self, model: nn.Module, tokens: Iterable[int]) -> None:
        """`model` is a causal language model, within PEFT or without; `tokens` are all that may be targets."""
        super().__init__()
        self.model = model
        head: Any = _inner(model).get_output_embeddings()
        kept = torch.tensor(sorted(set(tokens)), device=head.weight.device)
        places = torch.full((head.weight.shape[0],), -1, device=head.weight.device)
        places[kept] = torch.arange(len(kept), device=kept.device)
        self.register_buffer("weight", head.weight.detach()[kept], persistent=False)
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("others", (places < 0).nonzero()[:, 0], persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        """(M,) nats, as `answer_losses`."""
        hidden = self._hidden(batch)
        logits = functional.linear(hidden, self.weight.to(hidden.dtype))
        if len(self.others):
            # From torch's random state, which a checkpoint keeps
            drawn = self.others[torch.randint(len(self.others), (min(SAMPLE, len(self.others)),))]
            weight = _inner(self.model).get_output_embeddings().weight.detach()[drawn]
            beside = functional.linear(hidden, weight.to(hidden.dtype)).float() + math.log(
                len(self.others) / len(drawn)
            )
            logits = torch.cat([logits.float(), beside], dim=1)
        return functional.cross_entropy(logits.float(), self.places[batch.answer_ids], reduction="none")

    def _hidden(self, batch: Batch) -> Tensor:
        inner = _inner(self.model)
        inputs = batch.model_inputs()
        kept = inputs.pop("logits_to_keep")
        hidden: Tensor = getattr(inner, inner.base_model_prefix)(**inputs).last_hidden_state[0, kept]
        return hidden

    @torch.no_grad()
    def fits(self, document: Document) -> bool:
        """Whether the logits are those of the output layer alone: not scaled, not capped, without a bias."""
        batch = pack([document]).to(self.weight.device)
        whole = self.model(**batch.model_inputs()).logits[0][:, self.places >= 0]
        ours = functional.linear(self._hidden(batch), self.weight)
        return torch.allclose(ours.float(), whole.float(), rtol=1e-3, atol=1e-3)


def _inner(model: nn.Module) -> Any:
    """The model of transformers within PEFT's."""
    get = getattr(model, "get_base_model", None)
    return get() if get else model
