"""What of a base is trained: the one table of method kinds. A new kind is a class here and a line in `Method`.

Each kind is a frozen pydantic model (its YAML keys) with `attach`, which turns a loaded base into a trainable model
and saves in the form that `kauli.models.text.task` applies.
"""

from typing import Annotated, Literal, Self

from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from transformers import PreTrainedModel

from kauli.models.vision.heads import HeadKind

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj", "out_proj"]
"""What the modules of attention are called; a model has the last one under one of its two names."""


class Lora(BaseModel):
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685): `y = Wx + (alpha / rank) B A x`, `W` frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=512)
    alpha: float = Field(default=16, gt=0)
    targets: Literal["attention", "all-linear"] | tuple[str, ...] = "attention"
    """Which linear modules: the four of attention, every linear one but the head, or names as PEFT takes them."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def attach(self, model: PreTrainedModel, reference: str) -> PeftModel:
        """The model with fresh LoRA layers, everything else frozen. `reference` is what the adapter names as its base.

        The head of a CTC model is trained along: its letters may be new.

        Raises ValueError (from PEFT) where no module of the model has a target's name.
        """
        targets = self.targets if self.targets == "all-linear" else list(ATTENTION)
        hears = model.config.model_type == "wav2vec2"
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # PEFT says int, and divides all the same
            lora_dropout=self.dropout,
            target_modules=list(self.targets) if isinstance(self.targets, tuple) else targets,
            task_type=None if model.config.is_encoder_decoder or hears else "CAUSAL_LM",
            # Those of a CTC model are trained as they are, or are the base's own for a language
            exclude_modules=["lm_head", "adapter_layer.linear_1", "adapter_layer.linear_2"] if hears else None,
            base_model_name_or_path=reference,
        )
        attached = get_peft_model(model, config)
        if hears:
            model.lm_head.requires_grad_(True)
        return attached


class Full(BaseModel):
    """Every weight is trained: three times the memory, an "adapter" as large as its base."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["full"] = "full"

    def attach(self, model: PreTrainedModel, reference: str) -> nn.Module:
        """The model itself, all its parameters trainable."""
        model.requires_grad_(True)
        return model


class AttentionAdapter(BaseModel):
    """For `transcribe` on wav2vec2: a small adapter in each layer, and the head, as MMS has them for each language.

    Pratap et al. 2023, arXiv 2305.13516.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["attention_adapter"] = "attention_adapter"
    dim: int = Field(default=16, ge=1, le=1024)
    """The adapters' inner width; MMS has 16."""

    def attach(self, model: nn.Module, reference: str) -> nn.Module:
        """The model with its adapters and its head trainable, everything else frozen. Raises UsageError for another."""
        from kauli.models.speech.ctc_model import attach_adapters  # with what only this method needs

        attach_adapters(model, self.dim)
        return model


class Projection(BaseModel):
    """For `align`: the projections of frozen towers into the shared space, and the scale of their logits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["projection"] = "projection"

    def attach(self, model: nn.Module, reference: str) -> nn.Module:
        """The projections themselves (`kauli.models.vision.projections`), all their parameters trainable."""
        return model.requires_grad_(True)


class FewShot(BaseModel):
    """For `align`: a classifier on frozen embeddings, from a few pictures a class (`kauli.models.vision.heads`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["head"] = "head"
    head: HeadKind = "tip_f"
    shots: int = Field(default=5, ge=0)
    """Pictures drawn of each class; `zero_shot` takes none."""

    @model_validator(mode="after")
    def _shots_fit(self) -> Self:
        if (self.head == "zero_shot") != (self.shots == 0):
            raise ValueError("head zero_shot goes with shots 0, every other head with shots of 1 or more")
        return self


Method = Annotated[Lora | Full | AttentionAdapter | Projection | FewShot, Field(discriminator="kind")]
