"""The adapters of MMS: for the task `transcribe` on wav2vec2 (Pratap et al. 2023, arXiv 2305.13516, section 4.2)."""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

ADAPTER_LAYER = ".adapter_layer."
"""Part of the names of their weights."""


class AttentionAdapter(AdapterKind):
    """A small adapter in each layer of wav2vec2, and the head, as MMS has them for each language."""

    tasks: ClassVar = ("transcribe",)

    kind: Literal["attention_adapter"] = "attention_adapter"
    dim: int = Field(default=16, ge=1, le=1024)
    """The adapters' inner width; MMS has 16."""

    def attach(self, model: Any, reference: str) -> Any:
        """The model with its adapters and its head trainable, all else frozen; a base's own adapters are kept.

        Raises UsageError for any other model than a wav2vec2 with the norm before attention, and for another `dim`
        than the base's own.
        """
        ctc = model.config.model_type == "wav2vec2"
        if not ctc or not adapter_layers(model):
            kind = type(model).__name__ + (" with the norm after attention" if ctc else "")
            raise UsageError(
                f"method attention_adapter: the base is a {kind}, which has no place for attention adapters. Take a "
                "wav2vec2 of the kind of MMS or XLS-R for the task 'transcribe', or method: {kind: lora}."
            )
        model.requires_grad_(False)
        for layer in adapter_layers(model):
            if layer.adapter_layer is None:
                layer.adapter_layer = new_adapter(model, self.dim).train(model.training)
            elif (own := layer.adapter_layer.linear_1.out_features) != self.dim:
                raise UsageError(
                    f"method.dim {self.dim}: the base's own attention adapters have {own}, so set method.dim={own}."
                )
        for value in adapter_parameters(model).values():
            value.requires_grad_(True)
        return model


def adapter_layers(model: Any) -> list[Any]:
    """The encoder's layers if they have a place for an adapter: only where the norm comes before attention."""
    return list(model.wav2vec2.encoder.layers) if model.config.do_stable_layer_norm else []


def new_adapter(model: Any, dim: int) -> "nn.Module":
    """A layer's adapter that changes nothing yet: its second matrix is zero."""
    from torch.nn import init
    from transformers.models.wav2vec2.modeling_wav2vec2 import Wav2Vec2AttnAdapterLayer

    shape = SimpleNamespace(adapter_attn_dim=dim, hidden_size=model.config.hidden_size)
    module: Any = Wav2Vec2AttnAdapterLayer(shape)  # type: ignore[no-untyped-call]
    init.normal_(module.linear_1.weight, std=model.config.initializer_range)
    for value in (module.linear_1.bias, module.linear_2.weight, module.linear_2.bias):
        init.zeros_(value)
    out: nn.Module = module.to(model.device, model.dtype)
    return out


def adapter_parameters(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """The weights that attention adapters train, by MMS's names: each layer's adapter, and the head."""
    return {
        name: value for name, value in model.named_parameters() if ADAPTER_LAYER in name or name.startswith("lm_head.")
    }
