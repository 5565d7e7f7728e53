"""Odd data files as people have them: all rows, or one error that names the reason and the way out; nothing is lost."""

import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kauli.models.errors import UsageError
from kauli.training.data.dataset import Dataset, load_data
from kauli.training.data.options import DataOptions

TEXTS = [f"maneno {number} ya {number * 13} siku" for number in range(8)]
CSV = "text,language\n" + "".join(f"{text},sw\n" for text in TEXTS)
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
ROWS = [{"text": text, "language": "sw"} for text in TEXTS]
PAIRS = [{"translation": {"en": f"word {number}", "sw": text}} for number, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAULI_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def read(name: str, content: str | bytes, **options: Any) -> Dataset:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_data(path.parts[0], options=DataOptions(**options))


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def parquet(**columns: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("index.csv", ",text,language\n" + "".join(f"{at},{text},sw\n" for at, text in enumerate(TEXTS)), {}),
        ("nbsp.csv", CSV.replace("text,language", "text\u00a0,\u200blanguage"), {}),
        ("marks.csv", "\ufeff" + CSV.replace("text,language", "\ufefftext,language"), {}),
        ("double.csv", CSV.replace("\n", "\r\r\n"), {}),
        ("wide.csv", CSV.encode("utf-16-le"), {}),
        ("packed.csv", gzip.compress(CSV.encode()), {}),
        ("joined.csv.gz", gzip.compress(CSV[:60].encode()) + gzip.compress(CSV[60:].encode()), {}),
        ("padded.csv", CSV + "\0" * 64, {}),
        ("german.csv", "".join(f'"{line.replace(",", chr(34) + ";" + chr(34))}"\r\n' for line in CSV.splitlines()), {}),
        ("wrapped.json", json.dumps({"version": "1.0", "data": ROWS}), {}),
        ("score.jsonl", lines([row | {"score": float("nan")} for row in ROWS]), {}),
        ("nested.jsonl", lines(PAIRS), {"map": "text=translation.sw,prompt=translation.en", "language": "sw"}),
        ("struct.parquet", parquet(**{"translation": [row["translation"] for row in PAIRS]}),
         {"map": {"text": "translation.sw"}, "language": "sw"}),
        ("category.parquet", parquet(text=pa.array(TEXTS).dictionary_encode(), id=pa.array(range(8), pa.int8()),
                                     language=["sw"] * 8), {}),
        ("empty.parquet", parquet(text=TEXTS, language=pa.array([float("nan")] * 8)), {"language": "sw"}),
        ("parts.jsonl", lines([{"language": "sw", "messages": [{"role": "assistant", "content": [
            {"type": "text", "text": text}]}]} for text in TEXTS]), {}),
    ],
)  # fmt: skip
def test_every_row_is_read(name: str, content: str | bytes, options: dict[str, Any]) -> None:
    dataset = read(name, content, **options)
    assert sorted(row["text"] for row in dataset.rows(columns=["text"])) == sorted(TEXTS)
    assert dataset.languages == ("sw",)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("book.csv", b"PK\3\4" + bytes(range(256)), "book.csv: this is a ZIP archive or an Excel file: unpack it, or"),
        ("book.tsv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "this is an old Excel or Word file: save it as CSV"),
        ("page.jsonl", "<!DOCTYPE html>\n<html>404</html>\n", "page.jsonl: this is a web page: download the file"),
        ("page.csv", "\n<html>\n", "this is a web page"),
        ("pointer.parquet", LFS, "this is a pointer of Git LFS: fetch the file itself by git lfs pull"),
        ("pointer.csv", LFS, "pointer of Git LFS"),
        ("table.csv", parquet(text=TEXTS), "this is a Parquet file: call it .parquet"),
        ("cut.parquet", parquet(text=TEXTS)[:-20], "not a Parquet file, or damaged"),
        ("native.csv", CSV.replace("text,language", "Maandishi,Lugha"), "it has Lugha, Maandishi\n  Name the columns"),
        ("exported.csv", "# exported by ELAN\n" + CSV, "The header line is the first"),
        ("blanks.tsv", CSV.replace(",", "    "), "and its delimiter (--delimiter)"),
        ("twice.csv", "text,text\na,b\n", "the header has the column 'text' twice: rename one, or add a header line"),
        ("native.tsv", "Maandishi\tLugha\n", "native.tsv holds no rows"),
        ("smart.csv", "text,language\n\u201cmoja, mbili\u201d,sw\n", "a text that holds the delimiter stands in"),
        ("names.csv", "text,language\nmoja,Kiswahili\n", "unknown language 'Kiswahili': give a BCP-47 tag such as sw"),
        ("half.csv", "text,language\nmoja,sw\nmbili,\n", "line 3: no language"),
        ("mixed.csv", CSV.encode() + "caf\xe9,sw\n".encode("cp1252"), "line 10: not UTF-8 (byte 4)"),
        ("commas.jsonl", lines(ROWS).replace("}\n", "},\n"), "Each line is one object with names and texts in double"),
        ("python.jsonl", "".join(f"{row}\n" for row in ROWS), "line 1: not JSON"),
        ("one.jsonl", lines(ROWS).replace("\n", ""), "line 1: not JSON (Extra data"),
        ("kinds.jsonl", lines([*ROWS, None, "maneno", 3]), "line 9: not an object {...}; so in 2 more"),
        ("columns.json", json.dumps({"text": TEXTS, "language": ["sw"] * 8}), "is list, not text: give each row a"),
        ("pandas.json", json.dumps({"sentence": dict(enumerate(TEXTS))}), "is dict, not text: give each row a text"),
        ("splits.json", json.dumps({"train": ROWS, "test": ROWS}), "JSON needs an object for each row"),
        ("keyed.json", json.dumps({f"row{at}": row for at, row in enumerate(ROWS * 8)}), " and 108 more"),
        ("numbers.jsonl", lines([{"text": 10, "language": "sw"}, *ROWS]), "line 1: text is int, not text"),
        ("ids.jsonl", lines([row | {"id": float(at)} for at, row in enumerate(ROWS)]), "can be left out: --map id="),
        ("dates.parquet", parquet(text=pa.array([0], pa.date32()), language=["sw"]), "text is date, not text"),
        ("links.jsonl", lines([{"image": "https://example.org/0.jpg", "language": "sw"}]), "is an address: download"),
        ("paths.csv", "audio,language\nC:\\clips\\0.wav,sw\n", "missing or empty\n"),
        ("up.csv", "image,language\n../../etc/passwd,sw\n", "'../../etc/passwd' is outside the data's folder"),
        ("broken.jsonl", lines([{"image": "data:image/png;base64,iVB", "language": "sw"}]), "data: URI that can't be"),
        ("split.csv", "text,language,split\nmoja,sw,Trn\n", "unknown split 'Trn' (train, validation or test)"),
        ("asked.jsonl", lines([{"language": "sw", "messages": [{"role": "user", "content": "a"}]}]), "without an"),
        ("book.xlsx", b"PK\3\4", "can't read 'book.xlsx': save it as CSV."),
        ("words.conll", "moja NOUN\n", "can't read 'words.conll': give a file or folder of .parquet"),
        ("clips/0.wav", b"RIFF", "Images and clips need a table that names them, such as metadata.csv"),
        ("header.csv", "text,language\n", "header.csv holds no rows."),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_a_way_out(name: str, content: str | bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(name, content)
    assert words in str(caught.value)
    assert not list(Path("home").rglob("*.parquet"))  # nothing is half imported


def test_rows_without_a_text_are_left_out_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Any] = [*ROWS, {"text": float("nan"), "language": "sw"}]
    assert len(read("mine.jsonl", lines(rows)).rows()) == 8
    assert "1 x a row without text, image or audio, left out (mine.jsonl line 9)" in capsys.readouterr().err


def test_an_empty_file_of_a_folder_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/test.csv").write_text("text,language\n")
    assert len(read("mine/train.csv", CSV).rows()) == 8
    assert "1 x a file without rows (test.csv)" in capsys.readouterr().err


def test_media_named_without_a_suffix_or_written_into_the_table() -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    for number in range(3):  # as LJ Speech has them
        Path("lj/wavs").mkdir(parents=True, exist_ok=True)
        Path(f"lj/wavs/LJ{number}.wav").write_bytes(b"RIFF%d" % number)
    clips = read("lj/metadata.csv", "audio|text\n" + "".join(f"LJ{at}|{TEXTS[at]}\n" for at in range(3)), language="sw")
    assert {row["text"]: row["audio"] for row in clips.rows(columns=["text", "audio"])} == {
        TEXTS[at]: b"RIFF%d" % at for at in range(3)
    }
    uri = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    images = read("uri.jsonl", lines([row | {"image": uri} for row in ROWS]), leaks="group")
    assert {row["image"] for row in images.rows(columns=["image"])} == {out.getvalue()}
