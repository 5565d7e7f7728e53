"""The loss over the tokens that a data set holds, instead of over a base's whole vocabulary.

Half of the computation of a small base with a large vocabulary is its output layer: Gemma 3 270M has 262,144 tokens,
of which the texts of one language hold some thousands. Left out are tokens that no answer of the data has: they are
never a target, and the base rates them low already. Scores and validation always use the whole vocabulary.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kauli.models.engine.packing import Batch, Document, pack


class SeenSoftmax(nn.Module):
    """A language model's packed losses, with the cross-entropy among some tokens."""

    weight: Tensor
    places: Tensor

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

    def forward(self, batch: Batch) -> Tensor:
        """(M,) nats, as `answer_losses`."""
        return functional.cross_entropy(self._logits(batch).float(), self.places[batch.answer_ids], reduction="none")

    def _logits(self, batch: Batch) -> Tensor:
        inner = _inner(self.model)
        inputs = batch.model_inputs()
        kept = inputs.pop("logits_to_keep")
        hidden: Tensor = getattr(inner, inner.base_model_prefix)(**inputs).last_hidden_state[0, kept]
        return functional.linear(hidden, self.weight.to(hidden.dtype))

    @torch.no_grad()
    def fits(self, document: Document) -> bool:
        """Whether the logits are those of the output layer alone: not scaled, not capped, without a bias."""
        batch = pack([document]).to(self.weight.device)
        whole = self.model(**batch.model_inputs()).logits[0][:, self.places >= 0]
        return torch.allclose(self._logits(batch).float(), whole.float(), rtol=1e-3, atol=1e-3)


def _inner(model: nn.Module) -> Any:
    """The model of transformers within PEFT's."""
    get = getattr(model, "get_base_model", None)
    return get() if get else model
