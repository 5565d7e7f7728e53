"""Imports of user data: media are streamed, formats are a table, and what changes in between is noticed."""

import csv
import gzip
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kauli.models.errors import KauliError, UsageError
from kauli.training.data import imports
from kauli.training.data.dataset import load_data
from kauli.training.data.formats.table import DOCUMENTS, FORMATS
from kauli.training.data.options import DataOptions


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def clip(number: int, size: int = 40) -> bytes:
    return f"{number:08d}".encode() * (size // 8)


def clips(path: Path, count: int, size: int = 40) -> Path:
    with pq.ParquetWriter(path, pa.schema({"text": pa.string(), "audio": pa.binary()})) as writer:
        for number in range(count):
            writer.write_table(pa.table({"text": [f"Neno {number}"], "audio": [clip(number, size)]}))
    return path


def test_every_row_keeps_its_own_media(tmp_path: Path) -> None:
    """Rows are sorted by their id, which is not the order in which media are read."""
    clips(tmp_path / "a.parquet", 30)
    (tmp_path / "media").mkdir()
    (tmp_path / "media/x.png").write_bytes(b"\x89PNGx")
    lines = "".join(f'{{"text": "Picha {number}", "image": "media/x.png"}}\n' for number in range(9))
    (tmp_path / "b.jsonl").write_text(lines)
    rows = load_data(str(tmp_path), ["sw"]).rows(columns=["id", "text", "audio", "image"])
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert {row["text"]: (row["audio"], row["image"]) for row in rows} == {
        **{f"Neno {number}": (clip(number), None) for number in range(30)},
        **{f"Picha {number}": (None, b"\x89PNGx") for number in range(9)},
    }


ENDS = ("mwisho.", "na; \\'hapa\\'", "| ሰላም", "mstari\nwa pili", "\u200d!")
TEXTS = [f'Neno "{number}", {end}' for number in range(20) for end in ENDS]


def written(path: Path, texts: list[str]) -> None:
    rows = [{"text": text, "language": "sw"} for text in texts]
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("parquet", "arrow"):
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path)
        elif path.stem == "file":
            with pa.ipc.new_file(path, table.schema) as whole:
                whole.write_table(table, 7)
        else:
            with pa.ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table, 7)
        return
    if kind in ("csv", "tsv"):
        content = io.StringIO()
        csv.DictWriter(content, ["text", "language"], delimiter=",\t"[kind == "tsv"]).writerows(
            [{"text": "text", "language": "language"}, *rows]
        )
        encoded = content.getvalue().encode()
    elif kind == "txt":
        encoded = "\n".join(texts).encode()
    else:
        encoded = (json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))).encode()
    path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)


NAMES = [f"mine{suffix}" for suffix in FORMATS if suffix not in DOCUMENTS] + [
    "file.arrow",
    "mine.csv.gz",
    "mine.jsonl.gz",
    "mine.TSV.GZ",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_every_row(tmp_path: Path, name: str) -> None:
    texts = [text.replace("\n", " ") for text in TEXTS] if name == "mine.txt" else TEXTS
    written(tmp_path / name.lower(), texts)
    (tmp_path / name.lower()).rename(tmp_path / name)
    dataset = load_data(str(tmp_path / name), ["sw"])
    assert sorted(row["text"] for row in dataset.rows()) == sorted(texts)
    assert len({dataset.place(row["id"]) for row in dataset.rows()}) == len(texts)
    cut = (tmp_path / name).read_bytes()[:-40]
    if name.endswith((".parquet", "file.arrow", ".gz", ".GZ", ".json")):
        (tmp_path / name).write_bytes(cut)
        with pytest.raises(UsageError, match=r"damaged|cut off|not JSON"):
            load_data(str(tmp_path / name), ["sw"])


def test_a_new_format_is_a_line_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            yield f"line {number}", {"text": line} if line != "bad" else "a bad line"

    monkeypatch.setitem(FORMATS, ".words", read)
    (tmp_path / "good.words").write_text("moja\nmbili\ntatu\n")
    assert {row["text"] for row in load_data(str(tmp_path / "good.words"), ["sw"]).rows()} == {"moja", "mbili", "tatu"}
    (tmp_path / "bad.words").write_text("moja\nbad\n")
    with pytest.raises(UsageError, match=r"1 problem; .*\n  bad.words line 2: a bad line"):
        load_data(str(tmp_path / "bad.words"), ["sw"])


def test_data_that_changes_while_it_is_imported_is_an_error(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips(tmp_path / "mine.parquet", 5)
    real = imports.in_groups

    def change(*args: Any) -> Any:
        clips(path, 4)
        return real(*args)

    monkeypatch.setattr(imports, "in_groups", change)
    with pytest.raises(KauliError, match=r"mine.parquet changed while it was imported: start again"):
        load_data(str(path), ["sw"])
    assert not list(home.rglob("data.parquet"))


def test_a_known_import_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clips(tmp_path / "mine.parquet", 5)
    first = load_data(str(path), ["sw"])
    monkeypatch.setattr(imports, "write_parquet", lambda *_: pytest.fail("written again"))
    assert load_data(str(path), ["sw"]).reference.paths == first.reference.paths
    monkeypatch.undo()


MEASURE = """
import re, sys
from pathlib import Path
from kauli.training.data.dataset import load_data

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
dataset = load_data(sys.argv[1], ["sw"])
print(peak() - before, len(dataset.rows()))
"""


def test_memory_does_not_grow_with_the_media_of_an_import(tmp_path: Path) -> None:
    grown = []
    for count in (20, 200):
        path = clips(tmp_path / f"{count}.parquet", count, 1 << 20)
        command = [sys.executable, "-c", MEASURE, str(path)]
        growth, rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert int(rows) == count
        grown.append(int(growth) / 1024)
    assert grown[1] < grown[0] + 90  # MiB; holding all clips would add 180


def test_pairs_of_a_table(tmp_path: Path) -> None:
    """A text and what it translates; one English string lies in one split, whatever it is translated into."""
    rows = [
        {"input": f"The red car {n}", "input_language": "eng", "text": f"{word} {n}", "language": tag}
        for n in range(40)
        for tag, word in (("sw", "gari"), ("am", "መኪና"))
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = load_data(str(tmp_path / "pairs.jsonl")).rows()
    assert {(row["input"], row["input_language"], row["text"]) for row in found} == {
        (row["input"], "en", row["text"]) for row in rows
    }
    assert {row["prompt"] for row in found if row["text"] == "gari 3"} == {"Translate into Swahili: The red car 3"}
    splits = {row["input"]: {one["split"] for one in found if one["input"] == row["input"]} for row in found}
    assert all(len(one) == 1 for one in splits.values())
    assert len({split for one in splits.values() for split in one}) == 3


def test_an_input_without_its_language_joins_the_prompt(tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {n}", "input": "hello", "output": f"habari {n}", "language": "sw", "split": split}
            for n, split in enumerate(("train", "validation", "test"))]  # fmt: skip
    (tmp_path / "alpaca.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    row = min(load_data(str(tmp_path / "alpaca.jsonl")).rows(), key=lambda one: one["text"])
    assert (row["prompt"], row["input"], row["text"]) == ("Say 0\n\nhello", None, "habari 0")
