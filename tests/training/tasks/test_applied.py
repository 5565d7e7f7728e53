"""An adapter must do, as it was written, what it did at the end of training: else it does not become `latest`."""

from pathlib import Path
from typing import Any

import pytest

from kauli.models.bases.find import find_base
from kauli.models.tasks import resolve
from kauli.training.data.dataset import Dataset
from kauli.training.evaluation.request import EvalRequest
from kauli.training.loop.checkpoint import TrainState
from kauli.training.tasks.base import Examples
from kauli.training.tasks.table import TASKS
from kauli.training.tasks.text import TextTraining

ROWS = [{"id": str(at), "media": ()} for at in range(12)]


class Served:
    """Costs 20 bits a row of 10 bytes without an adapter, and `bits` with it."""

    def __init__(self, bits: float) -> None:
        self._bits = bits

    def bits(self, rows: Any, adapter: str | None) -> list[tuple[float, int]]:
        return [(20.0 if adapter is None else self._bits, 10) for _ in rows]


@pytest.mark.parametrize(
    ("bits", "fault"),
    [
        (10.0, None),
        (10.3, None),  # another precision
        (20.0, "it changes nothing: on validation the base alone gives the same probabilities"),
        (15.0, "it costs 1.500 bits per byte on validation as it was written, at the end of training 1.000"),
    ],
)
def test_what_was_written_is_compared_with_what_was_trained(bits: float, fault: str | None) -> None:
    state = TrainState(base_validation=2.0, best_validation=1.0)
    examples = Examples([], ROWS, (), "", ())
    request = EvalRequest(Path(), find_base("debug"), Dataset("none", [], []), (), served=Served(bits))
    assert TextTraining().fault(request, state, examples) == fault


def test_a_task_whose_validation_is_no_bits_is_not_compared() -> None:
    assert {name for name, place in TASKS.items() if not resolve(place).proved} == {"align", "head", "prompt", "speak"}
