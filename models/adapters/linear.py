"""The one form that every linear adapter takes in serving, by module: y = s * (W (t * x) + b0 + B A x) + b.

`s`, `t` and `b` are None where they change nothing. What does not fit this form is refused with the reason.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import Tensor, nn

from kauli.models.adapters.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from kauli.models.errors import KauliError
from kauli.models.files import read_json

_PREFIX = "base_model.model."
KINDS = ("LORA", "IA3")
# Settings of PEFT's LoRA under which a module's output is no sum of base and B A x any more, or not of one module.
_OTHER_FORMS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "modules_to_save",
    "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip


@dataclass(frozen=True)
class LinearDelta:
    """What an adapter does to one linear layer; rank R may be 0."""

    A: Tensor
    """(R, in)"""
    B: Tensor
    """(out, R), the adapter's scaling included."""
    scale: Tensor | None = None
    """(out,): `s`, of DoRA (Liu et al. 2024, arXiv 2402.09353) and IA3 (Liu et al. 2022, arXiv 2205.05638)."""
    input_scale: Tensor | None = None
    """(in,): `t`, of IA3 on feed-forward layers."""
    bias: Tensor | None = None
    """(out,): `b`."""


def read_deltas(folder: Path, linears: dict[str, nn.Linear], dtype: torch.dtype) -> dict[str, LinearDelta]:
    """The terms of a PEFT adapter folder by the module's name, in `dtype` on the CPU.

    Raises KauliError for a kind that does not fit the form, and where the tensors don't fit `linears` or each other: a
    tensor that finds no place would otherwise be an adapter that silently does nothing.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise KauliError(
            f"{folder}: adapters of the kind {kind} can't be served, since they are no change of linear layers; "
            f"{' and '.join(KINDS)} (with rsLoRA, DoRA and biases) can."
        )
    for setting in _OTHER_FORMS:
        if config.get(setting):
            raise KauliError(f"{folder}: an adapter with '{setting}' can't be served: it is more than B A x.")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(folder / ADAPTER_WEIGHTS).items():
        module, part = _place(key, linears)
        if module is None:
            raise KauliError(f"the adapter in {folder} does not fit the base: tensor {key} has no counterpart.")
        tensors.setdefault(module, {})[part] = tensor.to(dtype)
    read = _lora if kind == "LORA" else _ia3
    settings = PeftConfig.from_pretrained(str(folder))
    terms = {}
    for name, parts in tensors.items():
        try:
            if parts.keys() == {"bias"} and not check_target_module_exists(settings, name):
                terms[name] = _bias_alone(parts["bias"], linears[name])
            else:
                terms[name] = _sound(read(parts, config, name, linears[name]))
        except (KeyError, RuntimeError) as error:
            missing = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
            raise KauliError(f"the adapter in {folder} does not fit the base: {name}: {missing}") from error
    for name in sorted(linears.keys() - terms.keys()):
        trained_bias = config.get("bias") == "all" and linears[name].bias is not None
        if trained_bias or check_target_module_exists(settings, name):
            raise KauliError(f"the adapter in {folder} is not whole: tensors for {name} are missing.")
    return terms


def _place(key: str, linears: dict[str, nn.Linear]) -> tuple[str | None, str]:
    """The module that a tensor belongs to, None without one, and its name in there."""
    parts = key.removeprefix(_PREFIX).split(".")
    for length in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:length])
        if name in linears:
            return name, ".".join(parts[length:])
    return None, key


def _lora(parts: dict[str, Tensor], config: dict[str, Any], name: str, linear: nn.Linear) -> LinearDelta:
    A, B = parts.pop("lora_A.weight"), parts.pop("lora_B.weight")
    alphas, ranks = config.get("alpha_pattern") or {}, config.get("rank_pattern") or {}
    rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
    alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
    scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
    _check(A, (rank, linear.in_features), "lora_A")
    _check(B, (linear.out_features, rank), "lora_B")
    extra = parts.pop("lora_B.bias") if config.get("lora_bias") else None
    replaced = parts.pop("base_layer.bias", parts.pop("bias", None))  # the base's own, trained
    if replaced is None and linear.bias is not None and config.get("bias") in ("all", "lora_only"):
        raise KeyError("base_layer.bias")
    magnitude = parts.pop("lora_magnitude_vector") if config.get("use_dora") else None
    _none_left(parts)
    scale = bias = None
    if magnitude is not None:
        _check(magnitude.flatten(), (linear.out_features,), "lora_magnitude_vector")
        weight = linear.weight.detach().to(A) + scaling * (B @ A)
        scale = magnitude.flatten() / torch.linalg.vector_norm(weight, dim=1)
        if linear.bias is not None:  # DoRA scales the weight alone
            bias = linear.bias.detach().to(A) * (1 - scale)
    if extra is not None:
        bias = (0 if bias is None else bias) + scaling * extra * (1 if scale is None else scale)
    if replaced is not None:
        bias = (0 if bias is None else bias) + _bias_change(replaced, linear)
    return LinearDelta(A.contiguous(), (scaling * B).contiguous(), scale, None, bias)


def _bias_alone(replaced: Tensor, linear: nn.Linear) -> LinearDelta:
    """What PEFT's bias="all" does to a layer that is no target."""
    A, B = replaced.new_zeros(0, linear.in_features), replaced.new_zeros(linear.out_features, 0)
    return LinearDelta(A, B, bias=_bias_change(replaced, linear))


def _bias_change(replaced: Tensor, linear: nn.Linear) -> Tensor:
    if linear.bias is None:
        raise RuntimeError("there is no place for bias")
    _check(replaced, (linear.out_features,), "bias")
    return replaced - linear.bias.detach().to(replaced)


def _sound(term: LinearDelta) -> LinearDelta:
    """Matrices that are not finite would spoil the sums of other rows (0 x NaN is NaN); a bias spoils its own alone."""
    if term.A.isfinite().all() and term.B.isfinite().all():
        return term
    return LinearDelta(term.A[:0], term.B[:, :0], bias=term.B.new_full((len(term.B),), float("nan")))


def _ia3(parts: dict[str, Tensor], config: dict[str, Any], name: str, linear: nn.Linear) -> LinearDelta:
    vector = parts.pop("ia3_l")
    _none_left(parts)
    A, B = vector.new_zeros(0, linear.in_features), vector.new_zeros(linear.out_features, 0)
    if vector.shape[0] == 1:  # PEFT keeps (1, in) for feed-forward modules, (out, 1) for others
        _check(vector.flatten(), (linear.in_features,), "ia3_l")
        return LinearDelta(A, B, input_scale=vector.flatten())
    _check(vector.flatten(), (linear.out_features,), "ia3_l")
    return LinearDelta(A, B, scale=vector.flatten())


def _check(tensor: Tensor, shape: tuple[int, ...], part: str) -> None:
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"{part} is {tuple(tensor.shape)}, the place for it {shape}")


def _none_left(parts: dict[str, Tensor]) -> None:
    if parts:
        raise RuntimeError(f"there is no place for {next(iter(parts))}")
