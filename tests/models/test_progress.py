"""Progress in a notebook: the bar is an output of the cell, drawn without widgets."""

import sys
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from kauli.models.progress import bar


class Output:
    """What `IPython.display.display` gives with a display_id."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, data: dict[str, str], raw: bool) -> None:
        assert raw
        self.shown.append(data["text/plain"])


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    found = Output()

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Output:
        assert display_id
        found.update(data, raw)
        return found

    module: Any = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(Console, "is_jupyter", True, raising=False)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    return found


@pytest.mark.parametrize(("total", "first", "last"), [(4, "Scoring", "4/4"), (None, "Scoring", " 4 ")])
def test_a_bar_is_an_output_of_the_cell(output: Output, total: float | None, first: str, last: str) -> None:
    with bar("Scoring", total) as advance:
        for _ in range(4):
            advance(1, "loss 2.0")
    assert output.shown[0].startswith(first)
    assert last in output.shown[-1]
    assert output.shown[-1].endswith("loss 2.0")
    assert ("\u2501" * 24 in output.shown[-1]) == (total is not None)


def test_a_failed_step_leaves_the_bar_where_it_was(output: Output) -> None:
    def fail() -> None:
        with bar("Scoring", 4) as advance:
            advance()
            raise RuntimeError("away")

    with pytest.raises(RuntimeError, match="away"):
        fail()
    assert "1/4" in output.shown[-1]
