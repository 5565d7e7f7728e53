"""Full fine-tuning: every weight is trained."""

from typing import TYPE_CHECKING, ClassVar, Literal

from kauli.models.adapters.kinds.base import AdapterKind

if TYPE_CHECKING:
    from torch import nn


class Full(AdapterKind):
    """Every weight is trained: three times the memory, an "adapter" as large as its base."""

    tasks: ClassVar = ("text", "translate", "describe", "transcribe")
    starts_from: ClassVar = False

    kind: Literal["full"] = "full"

    def attach(self, model: "nn.Module", reference: str) -> "nn.Module":
        """The model itself, all its parameters trainable."""
        return model.requires_grad_(True)
