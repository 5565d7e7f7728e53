"""Adapter kinds: the recipe's field, what may be trained for which task, reading of a kind that is new."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kauli.models.adapters.delta import LinearDelta
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.table import KINDS, kinds_of, peft_kinds
from kauli.models.adapters.linear import read_deltas
from kauli.models.errors import KauliError


def test_each_kind_is_in_the_table_under_its_own_name() -> None:
    assert {name: kind.model_fields["kind"].default for name, kind in KINDS.items()} == {name: name for name in KINDS}
    assert set(peft_kinds()) == {"LORA", "IA3"}


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("text", ["lora", "full"]), ("describe", ["lora", "full"]), ("align", ["projection"]), ("head", ["head"]),
        ("translate", ["lora", "full"]), ("prompt", ["prompt"]), ("transcribe", ["lora", "full", "attention_adapter"]),
    ],
)  # fmt: skip
def test_a_task_has_its_kinds(task: str, names: list[str]) -> None:
    assert [kind.model_fields["kind"].default for kind in kinds_of(task)] == names


class Shift(AdapterKind):
    """A toy: each output is shifted."""

    peft_type: ClassVar = "SHIFT"

    kind: Literal["shift"] = "shift"

    @staticmethod
    def read(parts: dict[str, torch.Tensor], config: dict[str, Any], name: str, linear: nn.Linear) -> LinearDelta:
        vector = parts.pop("shift")
        return LinearDelta(
            vector.new_zeros(0, linear.in_features), vector.new_zeros(linear.out_features, 0), bias=vector
        )


def test_a_new_linear_kind_is_read_by_one_more_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"peft_type": "SHIFT", "target_modules": ["up"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.layer.up.shift": torch.arange(3.0)}, tmp_path / "adapter_model.safetensors")
    linears = {"layer.up": nn.Linear(2, 3), "layer.down": nn.Linear(3, 2)}
    with pytest.raises(KauliError, match="adapters of the kind SHIFT can't be served"):
        read_deltas(tmp_path, linears, torch.float32)
    monkeypatch.setitem(KINDS, "shift", Shift)
    deltas = read_deltas(tmp_path, linears, torch.float32)
    assert set(deltas) == {"layer.up"}
    assert torch.equal(deltas["layer.up"].bias, torch.arange(3.0))  # type: ignore[arg-type]
    linears["other.up"] = nn.Linear(2, 3)
    with pytest.raises(KauliError, match=r"tensors for other\.up are missing"):
        read_deltas(tmp_path, linears, torch.float32)
