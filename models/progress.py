"""Progress for a person: notes and bars on stderr, so that stdout stays the result alone."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_NOTEBOOK_S, _NOTEBOOK_WIDTH = 0.2, 24  # between two drawings of a bar in a notebook; characters of a bar


_kept: list[list[str]] = []


def note(text: str) -> None:
    """Print one line to stderr."""
    print(text, file=sys.stderr, flush=True)
    for notes in _kept:
        notes.append(text)


@contextmanager
def kept_notes() -> Iterator[list[str]]:
    """The notes of this process, which are printed as well: for a result that has them."""
    _kept.append([])
    try:
        yield _kept[-1]
    finally:
        _kept.pop()


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

    In a notebook it is an output of the cell. Without a terminal (a log, a test) it is the finished line alone.
    """
    if _listeners:
        done, tell = 0.0, _listeners[-1]

        def count(amount: float = 1, text: str = "") -> None:
            nonlocal done
            done += amount
            tell(description, done, total)

        yield count
        return
    from rich.console import Console  # here: every command would wait for it
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if console.is_jupyter:
        yield from _notebook_bar(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(description, total=total, text="")

        def advance(amount: float = 1, text: str = "") -> None:
            progress.update(task, advance=amount, text=text)

        yield advance


def _notebook_bar(description: str, total: float | None) -> Iterator[Callable[..., None]]:
    """The bar as text in the cell's output; rich itself would need ipywidgets there, and shows nothing without."""
    from IPython.display import display

    done, behind, began, drawn = 0.0, "", time.monotonic(), 0.0

    def shown() -> dict[str, str]:
        filled = round(_NOTEBOOK_WIDTH * min(1.0, done / total)) if total else 0
        line = "━" * filled + " " * (_NOTEBOOK_WIDTH - filled) if total else ""
        count = f"{done:g}/{total:g}" if total else f"{done:g}"
        return {"text/plain": f"{description} {line} {count} {time.monotonic() - began:.0f} s {behind}".rstrip()}

    handle = display(shown(), raw=True, display_id=True)

    def advance(amount: float = 1, text: str = "") -> None:
        nonlocal done, behind, drawn
        done, behind = done + amount, text
        if time.monotonic() - drawn > _NOTEBOOK_S:
            drawn = time.monotonic()
            handle.update(shown(), raw=True)

    try:
        yield advance
    finally:
        handle.update(shown(), raw=True)
