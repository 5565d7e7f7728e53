"""PEFT's weights in a model in training: read them from an adapter folder, and take PEFT's layers off again."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import nn

from kauli.models.errors import KauliError


def read_peft_weights(model: nn.Module, folder: Path, base: str) -> None:
    """Give the adapter of a `PeftModel` the weights of an adapter folder of the same kind and shape.

    `base` is the name of the base, for errors. Raises KauliError where a tensor is missing, left over or of another
    shape: PEFT itself would keep the fresh weights of a layer that the folder lacks.
    """
    weights = load_peft_weights(str(folder), device=str(next(model.parameters()).device))
    try:
        result: Any = set_peft_model_state_dict(model, weights, adapter_name="default")
    except RuntimeError as error:
        raise KauliError(f"the adapter in {folder} does not fit base '{base}': {error}") from error
    lost = [name for name in result.missing_keys if ".default." in name] + list(result.unexpected_keys)
    if lost:
        raise KauliError(f"the adapter in {folder} does not fit base '{base}': tensor {lost[0]} has no counterpart.")


def without_peft(model: nn.Module) -> nn.Module:
    """The base model inside a `PeftModel`, with the weights that it was loaded with; another model as it is.

    PEFT's layers are taken off in place: the `PeftModel` cannot be used afterwards.
    """
    if not isinstance(model, PeftModel):
        return model
    bare: nn.Module = model.unload()
    return bare.requires_grad_(False)
