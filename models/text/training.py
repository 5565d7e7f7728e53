"""A language model in training: the task `text`."""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.peft_weights import read_peft_weights, without_peft
from kauli.models.engine.precision import place
from kauli.models.text.language_model import LanguageModel, Row
from kauli.models.text.task import TextTask


class TrainableText(LanguageModel):
    """A causal language model that learns one adapter; `kauli.models.text.task.TextTask` serves it."""

    _changed = False
    """Whether training changes the base's own weights."""

    def attach(self, kind: AdapterKind) -> None:
        """Give the model a fresh adapter, the only thing that is trained; ValueError where the kind does not fit."""
        self.model = kind.attach(self.model, self.base.reference)
        self._changed = not isinstance(self.model, PeftModel)

    @property
    def trained(self) -> nn.Module:
        """The module that training computes with."""
        model: nn.Module = self.model
        return model

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape.

        Raises KauliError where a tensor is missing, left over or of another shape.
        """
        read_peft_weights(self.model, folder, self.base.name)

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
        if isinstance(self.model, PeftModel):
            # "auto" would ask the hub whether the vocabulary grew.
            self.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.model.save_pretrained(str(folder))

    def current_bits(self, rows: Sequence[Row], pack_tokens: int = 2048) -> list[tuple[float, int]]:
        """As `TextTask.bits`, of the model in its present state."""
        return self._score(self.trained, rows, pack_tokens, self.base.name)

    def served(self, dtype: torch.dtype | None = None) -> TextTask:
        """The base ready to answer, on the same weights; after full fine-tuning they are read anew.

        This object can't be used afterwards. `dtype` is that of `load`.
        """
        where, precision = place(str(self.device), dtype)
        if self._changed:
            return TextTask.load(self.base, str(where), precision)
        return TextTask(without_peft(self.model).to(precision), self.tokenizer, self.base)  # type: ignore[arg-type]
