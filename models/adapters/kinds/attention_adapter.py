"""The adapters of MMS: for the task `transcribe` on wav2vec2."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from kauli.models.adapters.kinds.base import AdapterKind

if TYPE_CHECKING:
    from torch import nn


class AttentionAdapter(AdapterKind):
    """A small adapter in each layer of wav2vec2, and the head, as MMS has them for each language.

    Pratap et al. 2023, arXiv 2305.13516.
    """

    tasks: ClassVar = ("transcribe",)

    kind: Literal["attention_adapter"] = "attention_adapter"
    dim: int = Field(default=16, ge=1, le=1024)
    """The adapters' inner width; MMS has 16."""

    def attach(self, model: "nn.Module", reference: str) -> "nn.Module":
        """The model with its adapters and its head trainable, everything else frozen. Raises UsageError for another."""
        from kauli.models.speech.ctc_model import attach_adapters  # with what only this method needs

        attach_adapters(model, self.dim)
        return model
