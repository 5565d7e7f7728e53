"""A PEFT adapter folder as the deltas of linear layers that serving applies (`kauli.models.adapters.delta`).

An adapter that does not fit this form is refused with the reason. How one layer is read is in each kind's file
(`kauli.models.adapters.kinds`).
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from torch import Tensor, nn

from kauli.models.adapters.delta import LinearDelta, bias_change
from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.adapters.kinds.table import peft_kinds
from kauli.models.errors import KauliError
from kauli.models.files import read_json

_PREFIX = "base_model.model."
# Settings of PEFT's LoRA under which a module's output is no sum of base and B A x any more, or not of one module.
_OTHER_FORMS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "modules_to_save",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
MERGE = (
    "To use it as it is, make it a base of its own: `model.merge_and_unload().save_pretrained(FOLDER)` and "
    "`tokenizer.save_pretrained(FOLDER)`, then `kauli generate --model ./FOLDER` and `kauli serve --base FOLDER`."
)
"""The way out for an adapter that can't be mixed with others."""


def read_deltas(folder: Path, linears: dict[str, nn.Linear], dtype: torch.dtype) -> dict[str, LinearDelta]:
    """The deltas of a PEFT adapter folder by the module's name, in `dtype` on the CPU.

    Raises KauliError for a kind that does not fit the form, and where the tensors don't fit `linears` or each other: a
    tensor that finds no place would otherwise be an adapter that silently does nothing.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    kinds, kind = peft_kinds(), config.get("peft_type")
    if kind not in kinds:
        raise KauliError(
            f"{folder}: adapters of the kind {kind} can't be served: they do not change linear layers alone. "
            f"Served are {', '.join(kinds)} (with rsLoRA, DoRA and biases)."
        )
    check_form(config, folder)
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
        module, part = place_of(key, linears)
        if module is None:
            raise KauliError(f"the adapter in {folder} does not fit the base: tensor {key} has no counterpart.")
        tensors.setdefault(module, {})[part] = tensor.to(dtype)
    # PEFT's own rule of names, on a configuration that PEFT itself need not know
    settings: Any = SimpleNamespace(**config | {"target_modules": config.get("target_modules") or []})
    deltas = {}
    for name, parts in tensors.items():
        try:
            if parts.keys() == {"bias"} and not check_target_module_exists(settings, name):
                deltas[name] = _bias_alone(parts["bias"], linears[name])
            else:
                deltas[name] = _sound(kinds[kind].read(parts, config, name, linears[name]))
        except (KeyError, RuntimeError) as error:
            missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise KauliError(f"the adapter in {folder} does not fit the base: {name}: {missing}") from error
    for name in sorted(linears.keys() - deltas.keys()):
        trained_bias = config.get("bias") == "all" and linears[name].bias is not None
        if trained_bias or check_target_module_exists(settings, name):
            raise KauliError(f"the adapter in {folder} is not whole: tensors for {name} are missing.")
    return deltas


def check_form(config: dict[str, Any], folder: Path) -> None:
    """Raise KauliError for a configuration of PEFT under which an adapter is more than changes of linear layers."""
    for setting in _OTHER_FORMS:
        if config.get(setting):
            raise KauliError(
                f"{folder}: an adapter with {setting}={config[setting]!r} can't be served: beside other adapters only "
                f"low-rank changes of linear layers can, which include lm_head (in target_modules). {MERGE}"
            )


def place_of(key: str, linears: dict[str, nn.Linear]) -> tuple[str | None, str]:
    """The module that a tensor belongs to, None without one, and its name in there."""
    parts = key.removeprefix(_PREFIX).split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if name in linears:
            return name, ".".join(parts[length:])
    return None, key


def _bias_alone(replaced: Tensor, linear: nn.Linear) -> LinearDelta:
    """What PEFT's bias="all" does to a layer that is no target."""
    A, B = replaced.new_zeros(0, linear.in_features), replaced.new_zeros(linear.out_features, 0)
    return LinearDelta(A, B, bias=bias_change(replaced, linear))


def _sound(delta: LinearDelta) -> LinearDelta:
    """Matrices that are not finite would spoil the sums of other rows (0 x NaN is NaN); a bias spoils its own alone."""
    if delta.A.isfinite().all() and delta.B.isfinite().all():
        return delta
    return LinearDelta(delta.A[:0], delta.B[:, :0], bias=delta.B.new_full((len(delta.B),), float("nan")))
