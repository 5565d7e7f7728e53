"""Tiny models and PEFT adapters with random weights that change every answer, for tests."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from kauli.models.bases.find import find_base
from kauli.models.engine.packing import ATTENTION

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@cache
def _model(base: str, dtype: torch.dtype) -> PreTrainedModel:
    if base != "biased":
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            find_base(base).folder, dtype=dtype, attn_implementation=ATTENTION
        )
        return loaded
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=259, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, attention_bias=True, mlp_bias=True, initializer_range=0.1,
            attn_implementation=ATTENTION,
        )  # fmt: skip
        model = LlamaForCausalLM(config).to(dtype)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def fresh(base: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A debug base, or "biased": a Llama whose linear layers all have a bias."""
    return copy.deepcopy(_model(base, dtype)).eval()


def save_adapter(folder: Path, base: str, config: PeftConfig, seed: int = 1, std: float = 0.2) -> Path:
    """What plain PEFT saves of an adapter none of whose weights are zero or one."""
    model = get_peft_model(fresh(base), config)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = std * torch.randn_like(parameter)
                multiplied = "ia3_l" in name or "magnitude" in name
                parameter.copy_(parameter * (1 + noise) if multiplied else noise)
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@cache
def peft_model(base: str, folder: Path | None, dtype: torch.dtype = torch.float32) -> Any:
    """PEFT's own model, the base alone without a folder."""
    model: Any = fresh(base, dtype)
    return PeftModel.from_pretrained(model, folder).eval() if folder else model


@torch.no_grad()
def peft_logits(base: str, folder: Path | None, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The logits (rows, T, vocabulary) of `peft_model`."""
    logits: Tensor = peft_model(base, folder, dtype)(input_ids=tokens).logits.float()
    return logits
