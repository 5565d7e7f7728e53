"""JSON: an object a line, objects over several lines, or one array of objects; images and audio are paths."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kauli.training.data.formats.text import read_lines
from kauli.training.data.options import DataOptions

_NO_OBJECT = "not an object {...}"
_BETWEEN = re.compile(r"[ \t\r\n,\[\]]*+")


def read_json(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`. A `.json` file, an array and indented objects are held as text."""
    lines = read_lines(file, options)
    document = file.name.lower().removesuffix(".gz").endswith(".json")
    for number, line, fault in lines:
        if fault is not None:
            yield f"line {number}", fault
        elif line.strip() and (document or line.strip() == "{" or line.lstrip().startswith("[")):
            parts = [line]
            for at, part, broken in lines:
                if broken is not None:
                    yield f"line {at}", broken
                parts.append(part)
            yield from _document("".join(parts), number)
            return
        elif line.strip():
            try:
                yield from _rows(_DECODER.decode(line), f"line {number}")
            except json.JSONDecodeError as error:
                yield f"line {number}", f"not JSON ({error.msg}, column {error.colno})"
            except (ValueError, RecursionError) as error:
                yield f"line {number}", f"not JSON ({error})"


def _document(text: str, line: int) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The objects of a text in which they stand behind each other or in arrays, each with the line it begins in."""
    at = depth = entry = 0
    while True:
        between = _BETWEEN.match(text, at)
        assert between is not None
        depth += between[0].count("[") - between[0].count("]")
        line, at = line + _line_ends(between[0]), between.end()
        if at == len(text):
            break
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            message = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield f"line {line}", f"not JSON ({message}), and the rest of the file was not read"
            return
        entry += 1
        yield from _rows(value, f"line {line} entry {entry}" if depth else f"line {line}")
        line, at = line + _line_ends(text[at:end]), end
    if depth:
        fault = "the array is never closed: the file is cut off" if depth > 0 else "a ] closes no array"
        yield f"line {line}", fault


def _line_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


def _rows(value: Any, place: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """An object is a row, one that holds nothing but a list of objects (`{"data": [...]}`) has a row in each."""
    if not isinstance(value, dict):
        yield place, _NO_OBJECT
        return
    lists = [one for one in value.values() if isinstance(one, list) and len(one) > 0 and isinstance(one[0], dict)]
    if "data" in value and lists == [value["data"]]:
        for number, one in enumerate(value["data"], start=1):
            yield f"{place} entry {number}", one if isinstance(one, dict) else _NO_OBJECT
    else:
        yield place, value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _value in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_once)
