"""LoRA with its variants rsLoRA and DoRA, and trained biases."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kauli.models.adapters.delta import LinearDelta, bias_change, check_none_left, check_shape
from kauli.models.adapters.kinds.base import AdapterKind

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]
"""Names of the modules of attention; a model has the last one under one of its two names."""
_WHOLE = {"wav2vec2": ["lm_head"]}
"""`model_type` -> modules that are trained as they are: the characters of a CTC model's vocabulary may be new."""
_LEFT = {"wav2vec2": ["adapter_layer.linear_1", "adapter_layer.linear_2"]}
"""`model_type` -> modules that get no LoRA: the base's own adapters for a language."""


class Lora(AdapterKind):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = Wx + (alpha / rank) B A x`, `W` frozen."""

    tasks: ClassVar = ("text", "translate", "describe", "transcribe", "speak")
    peft_type: ClassVar = "LORA"

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16, gt=0)
    targets: Literal["attention", "all-linear"] | tuple[str, ...] = "attention"
    """Which linear modules: the four of attention, every linear one but the head, or names as PEFT takes them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def attach(self, model: "PreTrainedModel", reference: str) -> "PeftModel":
        """The model with fresh LoRA layers, everything else frozen but the head of a CTC model.

        Raises ValueError (from PEFT) where no module of the model has a target's name.
        """
        from peft import LoraConfig, get_peft_model

        targets = self.targets if self.targets == "all-linear" else list(ATTENTION)
        whole, left = (table.get(model.config.model_type, []) for table in (_WHOLE, _LEFT))
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT says int, and divides all the same
            lora_dropout=self.dropout,
            target_modules=list(self.targets) if isinstance(self.targets, tuple) else targets,
            task_type="CAUSAL_LM" if model.can_generate() and not model.config.is_encoder_decoder else None,
            exclude_modules=whole + left or None,
            base_model_name_or_path=reference,
        )
        attached = get_peft_model(model, config)
        for name in whole:
            model.get_submodule(name).requires_grad_(True)
        return attached

    @staticmethod
    def read(parts: "dict[str, Tensor]", config: dict[str, Any], name: str, linear: "nn.Linear") -> LinearDelta:
        """See `AdapterKind.read`; rank and alpha patterns, rsLoRA, DoRA, a LoRA bias and a trained bias are applied."""
        import torch
        from peft.utils.other import get_pattern_key

        A, B = parts.pop("lora_A.weight"), parts.pop("lora_B.weight")
        alphas, ranks = config.get("alpha_pattern") or {}, config.get("rank_pattern") or {}
        rank = ranks.get(get_pattern_key(list(ranks), name), config["r"])
        alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
        scaling = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        check_shape(A, (rank, linear.in_features), "lora_A")
        check_shape(B, (linear.out_features, rank), "lora_B")
        extra = parts.pop("lora_B.bias") if config.get("lora_bias") else None
        replaced = parts.pop("base_layer.bias", parts.pop("bias", None))  # the base's own, trained
        if replaced is None and linear.bias is not None and config.get("bias") in ("all", "lora_only"):
            raise KeyError("base_layer.bias")
        magnitude = parts.pop("lora_magnitude_vector") if config.get("use_dora") else None
        check_none_left(parts)
        scale = bias = None
        if magnitude is not None:
            check_shape(magnitude.flatten(), (linear.out_features,), "lora_magnitude_vector")
            weight = linear.weight.detach().to(A) + scaling * (B @ A)
            scale = magnitude.flatten() / torch.linalg.vector_norm(weight, dim=1)
            if linear.bias is not None:  # DoRA scales the weight alone
                bias = linear.bias.detach().to(A) * (1 - scale)
        if extra is not None:
            bias = (0 if bias is None else bias) + scaling * extra * (1 if scale is None else scale)
        if replaced is not None:
            bias = (0 if bias is None else bias) + bias_change(replaced, linear)
        return LinearDelta(A.contiguous(), (scaling * B).contiguous(), scale, None, bias)
