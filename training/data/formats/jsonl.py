"""JSON Lines: an object a line, in UTF-8; images and audio are paths."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_jsonl(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`. Empty lines are skipped."""
    with file.open("rb") as handle:
        lines = (line for block in handle for line in block.splitlines())
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{file.name} line {number}", _parsed(line, "utf-8-sig" if number == 1 else "utf-8")


def _parsed(line: bytes, encoding: str) -> dict[str, Any] | str:
    try:
        raw = json.loads(line.decode(encoding))
    except UnicodeDecodeError as error:
        return f"not UTF-8 (byte {error.start + 1})"
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg}, column {error.colno})"
    return raw if isinstance(raw, dict) else "not an object {...}"
