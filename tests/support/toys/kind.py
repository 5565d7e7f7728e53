"""A toy adapter kind, `loha`: the product of two low-rank matrices, place by place, as PEFT has it."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kauli.models.adapters.delta import LinearDelta, check_none_left
from kauli.models.adapters.kinds.base import AdapterKind


class LoHa(AdapterKind):
    """LoHa (Hyeon-Woo et al. 2022, arXiv 2108.06098): `y = (W + s (A1 B1) * (A2 B2)) x`."""

    tasks: ClassVar = ("text",)
    peft_type: ClassVar = "LOHA"

    kind: Literal["loha"] = "loha"
    rank: int = 2

    def attach(self, model: Any, reference: str) -> Any:
        from peft import LoHaConfig, get_peft_model

        config = LoHaConfig(
            r=self.rank, alpha=self.rank, target_modules=["q_proj", "v_proj"], base_model_name_or_path=reference,
            init_weights=True,
        )  # fmt: skip
        return get_peft_model(model, config)

    @staticmethod
    def read(parts: dict[str, Tensor], config: dict[str, Any], name: str, linear: nn.Linear) -> LinearDelta:
        first, second = (parts.pop(f"hada_w{at}_a") @ parts.pop(f"hada_w{at}_b") for at in (1, 2))
        check_none_left(parts)
        scaling = config["alpha"] / config["r"]
        return LinearDelta(scaling * first * second, torch.eye(linear.out_features))
