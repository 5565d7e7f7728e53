"""Progress for a person: notes and bars on stderr, so that stdout stays the result alone."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def note(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)


_listeners: list[Callable[[str, float, float | None], None]] = []


@contextmanager
def forwarded(to: Callable[[str, float, float | None], None]) -> Iterator[None]:
    """Bars of this process call `to(description, done, total)` instead of being drawn: for a worker process."""
    _listeners.append(to)
    try:
        yield
    finally:
        _listeners.remove(to)


@contextmanager
def bar(description: str, total: float | None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr; yields `advance(amount=1, text="")`, where `text` is shown behind the bar.

    Without a terminal (a log, a test) it draws nothing but the finished line.
    """
    if _listeners:
        done, tell = 0.0, _listeners[-1]

        def count(amount: float = 1, text: str = "") -> None:
            nonlocal done
            done += amount
            tell(description, done, total)

        yield count
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, text="")

        def advance(amount: float = 1, text: str = "") -> None:
            progress.update(task, advance=amount, text=text)

        yield advance
