"""What `kauli demo` shows: a line a step with its time, figures in sentences, samples in a small table."""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TextIO

from rich.cells import cell_len, set_cell_size

from kauli.models.metrics import METRICS
from kauli.training.evaluation.results import EvalResult, format_value

WIDTH = 100
"""Columns of a terminal that a table of samples takes at most."""
RIGHT = "✓"
"""Stands behind an answer that is the reference, letter for letter."""
REFERENCE = "reference"
"""The column that answers are compared with."""


class Story:
    """Prints one line a step, with the time since the start, what the step took, and what is next."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._began = time.monotonic()
        self._took: list[tuple[str, float]] = []

    def say(self, text: str) -> None:
        """Print text."""
        print(text, file=self._screen, flush=True)

    def tell(self, text: str) -> None:
        """Print a text below a step."""
        indent = 7 * " "
        self.say(
            fill(
                text,
                WIDTH,
                initial_indent=indent,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )

    @contextmanager
    def step(self, done: str, then: str) -> Iterator[None]:
        """`done` tells what the step did, `then` what is next; both as the end of a sentence."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._took.append((done, took))
        self.say(f"{_clock(time.monotonic() - self._began)}  {done} ({took:.0f} s). Next: {then}.")

    def times(self) -> str:
        """Each step with its seconds."""
        total = time.monotonic() - self._began
        return "\n".join(f"{seconds:7.1f} s  {what}" for what, seconds in [*self._took, ("in all", total)])


def sentence(result: EvalResult, metric: str, things: str) -> str:
    """A figure of an adapter beside its base, such as "Character error rate 0.074 on 12 held-out clips; its ..."."""
    row = METRICS[metric]
    ours, base = (format_value(metric, one.get(metric)) for one in (result.metrics, result.base_metrics))
    _, bracket, said = result.base.partition(" (")  # what is said of the base beside its name
    return f"{row.label}: {ours} on {things}; its base{bracket}{said} {base} ({row.better} is better)."


def any_right(samples: Sequence[Mapping[str, str]]) -> bool:
    """Whether an answer of the adapter is the reference, letter for letter."""
    return any(_words(one["adapter"]) == _words(one[REFERENCE]) for one in samples)


def sample_table(samples: Sequence[Mapping[str, str]]) -> str:
    """Samples of the same columns as lines of at most `WIDTH` columns; `RIGHT` marks answers that are the reference."""
    rows = [dict(zip(samples[0], samples[0], strict=True))]
    for sample in samples:
        found = {name: _words(text) for name, text in sample.items()}
        answers = set(found) & {"base", "adapter"}
        right = {name for name in answers if found[name] == found[REFERENCE]}
        rows.append({name: f"{RIGHT} {text}" if name in right else text for name, text in found.items()})
    widths = {name: max(cell_len(row[name]) for row in rows) for name in rows[0]}
    while sum(widths.values()) > WIDTH - 2 * len(widths):
        widths[max(widths, key=lambda name: widths[name])] -= 1
    return "\n".join(
        ("  " + "  ".join(_cut(row[name], width) for name, width in widths.items())).rstrip() for row in rows
    )


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Whatever this process and those that it starts print goes to the file `log`; yields the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with log.open("w", encoding="utf-8") as file, os.fdopen(os.dup(1), "w", encoding="utf-8") as screen:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield screen
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, descriptor in enumerate(kept, start=1):
                os.dup2(descriptor, number)
                os.close(descriptor)


def _words(text: str) -> str:
    return " ".join(text.split())


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60:2d}:{int(seconds) % 60:02d}"


def _cut(text: str, width: int) -> str:
    return set_cell_size(text if cell_len(text) <= width else set_cell_size(text, width - 1) + "…", width)
