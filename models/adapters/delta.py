"""What an adapter does to one linear layer, in the one form that serving applies: y = s * (W (t * x) + b0 + B A x) + b.

`s`, `t` and `b` are None where they change nothing. Importing this file needs no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LinearDelta:
    """What an adapter does to one linear layer; rank R may be 0."""

    A: "Tensor"
    """(R, in)"""
    B: "Tensor"
    """(out, R), the adapter's scaling included."""
    scale: "Tensor | None" = None
    """(out,): `s`, of DoRA (Liu et al. 2024, arXiv 2402.09353) and IA3 (Liu et al. 2022, arXiv 2205.05638)."""
    input_scale: "Tensor | None" = None
    """(in,): `t`, of IA3 on feed-forward layers."""
    bias: "Tensor | None" = None
    """(out,): `b`."""


def check_shape(tensor: "Tensor", shape: tuple[int, ...], part: str) -> None:
    """Raise RuntimeError unless the tensor `part` of an adapter has `shape`."""
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"{part} is {tuple(tensor.shape)}, the place for it {shape}")


def check_none_left(parts: "Mapping[str, Tensor]") -> None:
    """Raise RuntimeError where tensors are left that a reader did not take."""
    if parts:
        raise RuntimeError(f"there is no place for {next(iter(parts))}")


def bias_change(replaced: "Tensor", linear: "nn.Linear") -> "Tensor":
    """(out,): a trained bias minus the base's own."""
    if linear.bias is None:
        raise RuntimeError("there is no place for bias")
    check_shape(replaced, (linear.out_features,), "bias")
    return replaced - linear.bias.detach().to(replaced)
