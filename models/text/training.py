"""A language model in training: the task `text`."""

from collections.abc import Sequence

from torch import nn

from kauli.models.adapters.peft_weights import PeftTrainable, without_peft
from kauli.models.engine.precision import place
from kauli.models.text.language_model import LanguageModel, Row
from kauli.models.text.task import TextTask


class TrainableText(PeftTrainable, LanguageModel):
    """A causal language model that learns one adapter; `kauli.models.text.task.TextTask` serves it."""

    @property
    def trained(self) -> nn.Module:
        """The module that training computes with."""
        model: nn.Module = self.model
        return model

    def current_bits(self, rows: Sequence[Row]) -> list[tuple[float, int]]:
        """As `TextTask.bits`, of the model in its present state."""
        return self._score(self.trained, rows, self.base.name)

    def served(self) -> TextTask:
        """The base ready to answer, on the same weights; after full fine-tuning they are read anew.

        This object cannot be used afterwards.
        """
        where, precision = place(str(self.device))
        if self.changes_base:
            return TextTask.load(self.base, str(where), precision)
        return TextTask(without_peft(self.model).to(precision), self.tokenizer, self.base)  # type: ignore[arg-type]
