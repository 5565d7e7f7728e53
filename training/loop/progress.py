"""The progress of a run whose workers may be anywhere: they write it to files, a bar of the driver reads them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from kauli.models.adapters.store import Store
from kauli.models.errors import KauliError
from kauli.models.progress import bar, forwarded, note

METRICS = "metrics.jsonl"
"""A line for each step and each validation."""
STAGE = "stage.json"
"""What is done beside the steps: features, evaluation."""
NOTES = "notes.json"
"""What a worker tells the user while it works: a list of sentences."""
_WRITE_EVERY = 1.0  # seconds between two writes; a step may take milliseconds


class MetricsLog:
    """`metrics.jsonl` of a run: a line for each step, written now and then as a whole."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._lines: list[str] | None = None
        self._written = 0.0

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line, and write all of them after a validation or where the last time is long enough ago.

        With the first line those of an earlier life are read, except what the resumed run repeats.
        """
        if self._lines is None:
            lines = (self._store.read(self._path) or b"").decode().splitlines()
            self._lines = [one for one in lines if json.loads(one)["step"] < line["step"]]
        rounded = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        self._lines.append(json.dumps(rounded))
        if "validation" in line or time.monotonic() - self._written > _WRITE_EVERY:
            self._store.write(self._path, ("\n".join(self._lines) + "\n").encode())
            self._written = time.monotonic()


class NoteLog:
    """`notes.json` of a run."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self.told: list[str] = []

    def add(self, text: str) -> None:
        """Tell the user a sentence."""
        self.told.append(text)
        self._store.write(self._path, json.dumps(self.told).encode())


@contextmanager
def stages_written(store: Store, folder: str) -> Iterator[None]:
    """The bars of what is done inside are written to the run's folder instead of being drawn here."""
    written = 0.0

    def write(what: str, done: float, total: float | None) -> None:
        nonlocal written
        if time.monotonic() - written > _WRITE_EVERY:
            store.write(f"{folder}/{STAGE}", json.dumps([what, done, total]).encode())
            written = time.monotonic()

    with forwarded(write):
        yield


@contextmanager
def watched(runs: Store, folder: str) -> Iterator[None]:
    """A bar with the progress of the run in `folder`, and the notes of its workers as they come."""
    stop = threading.Event()
    told: list[str] = []

    def tell() -> None:
        for text in json.loads(runs.read(f"{folder}/{NOTES}") or b"[]"):
            if text not in told:
                told.append(text)
                note(text)

    def watch() -> None:
        shown = 0.0
        with bar("Training", 100) as advance:
            while not stop.wait(1):
                try:
                    tell()
                    lines = (runs.read(f"{folder}/{METRICS}") or b"").decode().splitlines()
                    stage = json.loads(runs.read(f"{folder}/{STAGE}") or b"null")
                except KauliError:
                    continue  # a file that can't be read now is no reason to disturb the training
                steps = [line for line in map(json.loads, lines[-50:]) if "loss" in line]
                share = round(100 * min(1, steps[-1]["budget"])) if steps else 0
                text = ""
                if stage is not None:
                    text = f"{stage[0]} {stage[1]:.0f}" + (f" of {stage[2]:.0f}" if stage[2] is not None else "")
                if steps and (stage is None or share < 100):
                    last = steps[-1]
                    text = f"step {last['step']}  loss {last['loss']:.3f}  {last['tokens_per_second']:.0f} tokens/s"
                advance(max(0.0, share - shown), text)
                shown = max(shown, share)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(KauliError):  # of a storage that fails now: the training is done
            tell()
