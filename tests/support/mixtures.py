"""What a mixture of LoRA adapters must give: the base with the weighted sum of their changes added to its weights."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from kauli.models.files import read_json
from support.random_adapters import fresh


def changes(folder: Path) -> dict[str, Tensor]:
    """Module -> (alpha / r) B A of a PEFT folder, or (alpha / sqrt r) B A with rsLoRA; no pattern for alpha."""
    config, tensors = read_json(folder / "adapter_config.json"), load_file(folder / "adapter_model.safetensors")
    found = {}
    for key, A in tensors.items():
        if key.endswith("lora_A.weight"):
            B = tensors[key.replace("lora_A", "lora_B")]
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            alpha = (config.get("alpha_pattern") or {}).get(name, config["lora_alpha"])
            found[name] = alpha / (math.sqrt(len(A)) if config["use_rslora"] else len(A)) * (B @ A)
    return found


@torch.no_grad()
def summed_logits(base: str, parents: Sequence[tuple[Path, float]], tokens: Tensor) -> Tensor:
    """The logits (rows, T, vocabulary) of a debug base whose weights are W + sum of w_i dW_i."""
    model = fresh(base)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # the embeddings, which it may share, stay
    for folder, weight in parents:
        for name, change in changes(folder).items():
            model.get_submodule(name).weight += weight * change
    logits: Tensor = model(input_ids=tokens).logits
    return logits
