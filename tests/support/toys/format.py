"""A toy data format: a line is a prompt, a bar and a text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kauli.training.data.options import DataOptions


def read_bars(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows of a .bars file."""
    with file.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            prompt, bar, text = line.rstrip("\n").partition("|")
            place = f"line {number}"
            yield place, ({"prompt": prompt, "text": text, "language": "sw"} if bar else "no bar")
