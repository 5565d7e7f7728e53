"""JSON: objects by the line, over lines, and in arrays."""

import json
from pathlib import Path
from typing import Any

import pytest

from kauli.training.data.formats.json_objects import read_json
from kauli.training.data.options import DataOptions

ROWS: list[dict[str, Any]] = [
    {"text": "a\u2028[,]{}\n", "n": [1, {"b": None}]},
    {"text": '"'},
    {"text": "ሰላም", "x": {}},
]
FORMS = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines that are UTF-8": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "an array": json.dumps(ROWS),
    "an indented array": json.dumps(ROWS, indent=2),
    "indented objects": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "arrays of one": "\n".join(json.dumps([row]) for row in ROWS),
    "data": json.dumps({"data": ROWS, "version": 1}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_all_forms_give_the_rows(tmp_path: Path, form: str, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(FORMS[form].encode())
    assert [raw for _place, raw in read_json(path, DataOptions())] == ROWS


def test_rows_have_the_line_they_begin_in(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('[\n  {"a": 1},\r\n  {\n   "a": 2\n  }, {"a": 3}\n]\n')
    places = [place for place, _raw in read_json(path, DataOptions())]
    assert places == ["line 2 entry 1", "line 3 entry 2", "line 5 entry 3"]


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ('{"a": 1}\n{"a": 1,\n{"a": 2}', "line 2", "not JSON (Expecting property name"),
        ('{"a": 1}\n[1]\n', "line 2 entry 1", "not an object {...}"),
        ('{"a": 1, "a": 2}', "line 1", "not JSON (the key 'a' is there twice)"),
        ('[{"a": 1},\n{"a": 2}', "line 2", "the array is never closed: the file is cut off"),
        ('[{"a": 1},\n{"a": ', "line 2", "and the rest of the file was not read"),
        ('{\n"a": 1\n}\n"x"', "line 4", "not an object {...}"),
        ("[" * 9 + '{"a":' * 5000, "line 1", "not JSON ("),
    ],
)
def test_faults_are_named_by_line(tmp_path: Path, content: str, place: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    faults = [(where, raw) for where, raw in read_json(path, DataOptions()) if isinstance(raw, str)]
    assert faults[0][0] == place
    assert message in faults[0][1]
