"""What an adapter does to one linear layer, in the one form that serving applies: y = s * (W (t * x) + b0 + B A x) + b.

`s`, `t` and `b` are None where they change nothing. Importing this file needs no torch.
"""

from collections.abc import Mapping, Sequence
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


def mixed_deltas(parts: "Sequence[tuple[Mapping[str, LinearDelta], float]]") -> dict[str, LinearDelta]:
    """The weighted sum of what adapters change, layer by layer: exact, since the ranks stand beside one another.

    `sum w_i B_i A_i = [w_1 B_1, w_2 B_2, ...] [A_1; A_2; ...]`, and biases are added. A weight of 0 leaves its adapter
    out. Raises RuntimeError for a layer that is scaled (DoRA, IA3) or not finite, or has two shapes.
    """
    import torch

    mixed = {}
    used = [(deltas, weight) for deltas, weight in parts if weight]
    for name in dict.fromkeys(name for deltas, _ in used for name in deltas):
        found = [(deltas[name], weight) for deltas, weight in used if name in deltas]
        first = found[0][0]
        for delta, _ in found:
            if delta.scale is not None or delta.input_scale is not None:
                raise RuntimeError(f"{name} is scaled (DoRA or IA3), and scales are no sums")
            if delta.bias is not None and not delta.bias.isfinite().all():
                raise RuntimeError(f"{name} holds numbers that are not finite")
            check_shape(delta.A, (len(delta.A), first.A.shape[1]), f"{name}: A")
            check_shape(delta.B, (len(first.B), len(delta.A)), f"{name}: B")
        biases = [weight * delta.bias for delta, weight in found if delta.bias is not None]
        A = torch.cat([delta.A for delta, _ in found])
        B = torch.cat([weight * delta.B for delta, weight in found], dim=1)
        mixed[name] = LinearDelta(A, B, bias=torch.stack(biases).sum(dim=0) if biases else None)
    return mixed


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
