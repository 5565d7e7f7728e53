"""The projections of two frozen towers into their shared space: for the task `align`."""

from typing import TYPE_CHECKING, ClassVar, Literal

from kauli.models.adapters.kinds.base import AdapterKind

if TYPE_CHECKING:
    from torch import nn


class Projection(AdapterKind):
    """The projections of frozen towers into the shared space, and the scale of their logits."""

    tasks: ClassVar = ("align",)

    kind: Literal["projection"] = "projection"

    def attach(self, model: "nn.Module", reference: str) -> "nn.Module":
        """The projections themselves (`kauli.models.vision.projections`), all their parameters trainable."""
        return model.requires_grad_(True)
