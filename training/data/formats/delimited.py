"""CSV and TSV with a header line, in UTF-8; images and audio are paths."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MOST_FIELD_BYTES = 1 << 24


def read_delimited(file: Path, delimiter: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`."""
    undecoded: list[tuple[str, str]] = []

    def lines() -> Iterator[str]:
        parts = (line for block in handle for line in block.splitlines(keepends=True))
        for number, line in enumerate(parts, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                undecoded.append((f"{file.name} line {number}", f"not UTF-8 (byte {error.start + 1})"))
                yield "\n"

    csv.field_size_limit(_MOST_FIELD_BYTES)
    with file.open("rb") as handle:
        reader = csv.DictReader(lines(), delimiter=delimiter)
        try:
            for raw in reader:
                yield from undecoded
                undecoded.clear()
                place = f"{file.name} line {reader.line_num}"
                if None in raw:
                    yield place, "more fields than the header has columns"
                else:
                    yield place, {key: value or None for key, value in raw.items()}
        except csv.Error as error:
            yield f"{file.name} line {reader.line_num}", str(error)
        yield from undecoded
