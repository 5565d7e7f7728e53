"""Text files: encodings, line ends, gzip, a text a line."""

import codecs
import gzip
from pathlib import Path

import pytest

from kauli.training.data.formats.text import read_lines, read_texts
from kauli.training.data.options import DataOptions

LINES = ["Coração", "ሰላም ዓለም", "yo: é", "a\u2028b"]
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str, suffix: str) -> None:
    content = ENCODINGS[encoding] + end.join(LINES).encode(encoding)
    path = tmp_path / f"mine.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    expected = [{"text": text + end * (number < 4)} for number, text in enumerate(LINES, start=1)]
    assert [raw for _place, raw in read_texts(path, DataOptions())] == expected


def test_utf16_without_a_mark_and_encodings_by_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes("language\n".encode("utf-16-le"))
    assert list(read_lines(path, DataOptions())) == [(1, "language\n", None)]
    path.write_bytes("Coração – sim".encode("cp1252"))
    assert list(read_lines(path, DataOptions(encoding="windows-1252"))) == [(1, "Coração – sim", None)]
    assert list(read_lines(path, DataOptions())) == [(1, "", "not UTF-8 (byte 5)")]


def test_damage_is_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt.gz"
    path.write_bytes(gzip.compress(b"".join(b"%d\n" % (number**9) for number in range(20000)))[:-2000])
    *_, (number, text, fault) = read_lines(path, DataOptions())
    assert (text, number > 1000) == ("", True)
    assert "the gzip file is damaged or cut off" in str(fault)
    path.write_bytes(b"no gzip")
    assert list(read_lines(path, DataOptions())) == [(1, "no gzip", None)]
    path = tmp_path / "mine.txt"
    path.write_bytes("moja\nmbili\n".encode("utf-16")[:-1])
    assert list(read_lines(path, DataOptions()))[-1][2] is not None
