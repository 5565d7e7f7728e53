"""A model in training by PEFT: its weights read from and written as an adapter folder, PEFT's layers taken off."""

import warnings
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.bases.find import Base
from kauli.models.errors import KauliError


class PeftTrainable:
    """A base that learns an adapter of PEFT, or all its weights; the rest of a trainable class is the task's own."""

    base: Base
    model: Any
    _attached = False

    def attach(self, kind: AdapterKind) -> None:
        """Give the model a fresh adapter, the only thing that is trained; ValueError where the kind does not fit."""
        self.model = kind.attach(self.model, self.base.reference)
        self._attached = True

    @property
    def changes_base(self) -> bool:
        """Whether training changes the base's own weights."""
        return self._attached and not isinstance(self.model, PeftModel)

    def start_from(self, folder: Path) -> None:
        """Give the adapter in training the weights of an adapter folder of the same kind and shape.

        Raises KauliError where a tensor is missing, left over or of another shape: PEFT itself would keep the fresh
        weights of a layer that the folder lacks.
        """
        weights = load_peft_weights(str(folder), device=str(next(self.model.parameters()).device))
        misfit = f"the adapter in {folder} does not fit base '{self.base.name}'"
        try:
            result: Any = set_peft_model_state_dict(self.model, weights, adapter_name="default")
        except RuntimeError as error:
            raise KauliError(f"{misfit}: {error}") from error
        lost = [name for name in result.missing_keys if ".default." in name] + list(result.unexpected_keys)
        if lost:
            raise KauliError(f"{misfit}: tensor {lost[0]} has no counterpart.")

    def save(self, folder: Path) -> None:
        """Write the adapter in training as a PEFT folder, or the whole model's weights after full fine-tuning."""
        # "auto" would ask the hub whether the vocabulary grew
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns of settings in the configuration
            self.model.save_pretrained(str(folder), **options)


def without_peft(model: nn.Module) -> nn.Module:
    """The base model inside a `PeftModel`, with the weights that it was loaded with; another model as it is.

    PEFT's layers are taken off in place: the `PeftModel` cannot be used afterwards.
    """
    if not isinstance(model, PeftModel):
        return model
    bare: nn.Module = model.unload()
    return bare.requires_grad_(False)
