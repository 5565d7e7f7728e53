"""The one table of adapter kinds. A new kind is a file beside this one and a line here; importing it needs no torch."""

from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field

from kauli.models.adapters.kinds.attention_adapter import AttentionAdapter
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.head import FewShot
from kauli.models.adapters.kinds.ia3 import Ia3
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.kinds.projection import Projection

KINDS: dict[str, type[AdapterKind]] = {
    "lora": Lora,
    "full": Full,
    "attention_adapter": AttentionAdapter,
    "projection": Projection,
    "head": FewShot,
    "ia3": Ia3,
}


def kinds_of(task: str) -> tuple[type[AdapterKind], ...]:
    """The kinds that recipes of a task (a row of `kauli.models.tasks.TASKS`) may train."""
    return tuple(kind for kind in KINDS.values() if task in kind.tasks)


def method_of(*tasks: str) -> Any:
    """The type of a recipe's field `method`: the kinds of these tasks, told apart by the key `kind`."""
    kinds = tuple(dict.fromkeys(kind for task in tasks for kind in kinds_of(task)))
    return kinds[0] if len(kinds) == 1 else Annotated[Union[kinds], Field(discriminator="kind")]  # noqa: UP007


def peft_kinds() -> dict[str, type[AdapterKind]]:
    """PEFT's name -> kind, of those whose deltas can be read and served."""
    return {kind.peft_type: kind for kind in KINDS.values() if kind.peft_type is not None}


if TYPE_CHECKING:
    Method = AdapterKind
else:
    Method = method_of("text", "describe", "align", "head", "transcribe")
"""The method of any recipe."""
