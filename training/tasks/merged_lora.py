"""LoRA layers at the cost of plain linear ones: the low-rank product is added to the weight, not to the output.

PEFT computes `Wx + s B(Ax)`, which on a CPU spends more on reading and writing activations than on arithmetic. With T
tokens in the batch, adding `s B A` to `W` first costs r / T of the layer, and the backward pass needs no product of
the weight's own size:

    dx = dy (W + sBA),    dA = s (dy B)^T x,    dB = s dy^T (x A^T)

Exact up to rounding, in fp32; in bf16 the sum would round the update away, so there PEFT's own way stays. The same
holds with dropout, which acts on the low-rank path alone.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class _MergedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return functional.linear(x, torch.addmm(weight, b, a, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, weight, a, b = ctx.saved_tensors
        x_TI, grad_TO = x.flatten(0, -2), grad.flatten(0, -2)
        grad_x = grad @ torch.addmm(weight, b, a, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        grad_a = ctx.scale * ((grad_TO @ b).T @ x_TI)
        grad_b = ctx.scale * (grad_TO.T @ (x_TI @ a.T))
        return grad_x, None, None, grad_a, grad_b, None


def merge_while_training(model: nn.Module) -> int:
    """Make every LoRA layer that allows it train as described above; returns how many.

    A layer allows it when it is a plain LoRA (no DoRA, no bias of its own), without dropout, in fp32. The parameters
    and what PEFT saves stay as they are; in eval mode the layers work as before.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _allows(module):
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]
            count += 1
    return count


def _allows(layer: LoraLinear) -> bool:
    names = layer.active_adapters
    if len(names) != 1:
        return False
    name = names[0]
    plain = isinstance(layer.lora_dropout[name], nn.Identity) and name not in layer.lora_variant
    in_fp32 = layer.get_base_layer().weight.dtype == layer.lora_A[name].weight.dtype == torch.float32
    return plain and in_fp32 and layer.lora_A[name].bias is None and layer.lora_B[name].bias is None


def _forward(layer: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if not layer.training or layer.disable_adapters or torch.is_autocast_enabled(x.device.type):
        output: Tensor = LoraLinear.forward(layer, x, *args, **kwargs)
        return output
    base, name = layer.get_base_layer(), layer.active_adapters[0]
    merged: Tensor = _MergedLinear.apply(
        x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    )
    return merged
