"""The one table of adapter kinds. A new kind is a file beside this one and a line here; importing it needs no torch."""

from kauli.models.adapters.kinds.attention_adapter import AttentionAdapter
from kauli.models.adapters.kinds.base import AdapterKind
from kauli.models.adapters.kinds.full import Full
from kauli.models.adapters.kinds.head import FewShot
from kauli.models.adapters.kinds.ia3 import Ia3
from kauli.models.adapters.kinds.lora import Lora
from kauli.models.adapters.kinds.projection import Projection
from kauli.models.adapters.kinds.prompt import Prompt

KINDS: dict[str, type[AdapterKind]] = {
    "lora": Lora,
    "full": Full,
    "attention_adapter": AttentionAdapter,
    "projection": Projection,
    "head": FewShot,
    "prompt": Prompt,
    "ia3": Ia3,
}


def kinds_of(row: str) -> tuple[type[AdapterKind], ...]:
    """The kinds that recipes of a task may train; `row` is its name in `kauli.models.tasks.TASKS`."""
    return tuple(kind for kind in KINDS.values() if row in kind.tasks)


def peft_kinds() -> dict[str, type[AdapterKind]]:
    """PEFT's name -> kind, of those whose deltas can be read and served."""
    return {kind.peft_type: kind for kind in KINDS.values() if kind.peft_type is not None}
