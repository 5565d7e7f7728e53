"""IA3: one scale an output or an input; adapters that plain PEFT made are imported and served, none is trained."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from kauli.models.adapters.delta import LinearDelta, check_none_left, check_shape
from kauli.models.adapters.kinds.base import AdapterKind

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ia3(AdapterKind):
    """Learned scales of activations (Liu et al. 2022, arXiv 2205.05638)."""

    peft_type: ClassVar = "IA3"

    kind: Literal["ia3"] = "ia3"

    @staticmethod
    def read(parts: "dict[str, Tensor]", config: dict[str, Any], name: str, linear: "nn.Linear") -> LinearDelta:
        """See `AdapterKind.read`."""
        vector = parts.pop("ia3_l")
        check_none_left(parts)
        A, B = vector.new_zeros(0, linear.in_features), vector.new_zeros(linear.out_features, 0)
        if vector.shape[0] == 1:  # PEFT keeps (1, in) for feed-forward modules, (out, 1) for others
            check_shape(vector.flatten(), (linear.in_features,), "ia3_l")
            return LinearDelta(A, B, input_scale=vector.flatten())
        check_shape(vector.flatten(), (linear.out_features,), "ia3_l")
        return LinearDelta(A, B, scale=vector.flatten())
