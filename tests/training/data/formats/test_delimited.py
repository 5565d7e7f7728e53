"""CSV and TSV: delimiters, quotes of all schools, and quotes that are none."""

import csv
from pathlib import Path
from typing import Any

import pytest

from kauli.training.data.formats.delimited import read_delimited
from kauli.training.data.options import DataOptions

NAMES = ["language", "text", "prompt"]
ROWS = [
    ["sw", "Habari ya asubuhi, rafiki", "Good morning; friend"],
    ["sw", 'Alisema "habari" jana', ""],
    ["sw", "Mstari wa kwanza\nmstari wa pili, wa tatu", "|"],
    ["sw", '"', '""'],
    ["sw", "'moja'", "back\\slash\\"],
    ["sw", "  nafasi  ", "tab\there"],
]


def read(path: Path, content: str, **options: Any) -> list[Any]:
    path.write_bytes(content.encode())
    return list(read_delimited(path, DataOptions(**options)))


def values(found: list[Any]) -> list[list[str | None]]:
    return [list(raw.values()) if isinstance(raw, dict) else [raw] for _place, raw in found]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize(
    ("quoting", "end"),
    [(csv.QUOTE_MINIMAL, "\n"), (csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\r\n"), (csv.QUOTE_ALL, "\r")],
)
def test_what_is_written_by_the_rules_is_read(
    tmp_path: Path, delimiter: str, suffix: str, quoting: Any, end: str
) -> None:
    path = tmp_path / f"mine{suffix}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerows([NAMES, *ROWS])
    assert values(list(read_delimited(path, DataOptions()))) == [[one or None for one in row] for row in ROWS]


STRAY = 'language\ttext\tprompt\nsw\tMoja\tOne\nsw\t"Mbili\tTwo\nsw\tTatu\tThree\n{}\nsw\tNne\tFour\n'
LAST = ["sw\tTano\tFive", 'sw\t"Tano\tFive', 'sw\tTano"\tFive', 'sw\tTano\t"Five"', 'sw\t"Tano, sita"\tFive']


@pytest.mark.parametrize("last", LAST)
def test_a_stray_quote_swallows_no_row(tmp_path: Path, last: str) -> None:
    found = read(tmp_path / "mine.tsv", STRAY.format(last))
    assert values(found) == [["sw", "Moja", "One"], ["sw", '"Mbili', "Two"], ["sw", "Tatu", "Three"], last.split("\t"),
                             ["sw", "Nne", "Four"]]  # fmt: skip
    assert [place for place, _raw in found] == [f"line {number}" for number in range(2, 7)]


@pytest.mark.parametrize("last", ["sw,Tano,Five", 'sw,"Tano,Five', 'sw,Tano",Five', 'sw,"Tano, ""sita""",Five'])
def test_a_stray_quote_in_csv_swallows_no_row(tmp_path: Path, last: str) -> None:
    found = values(read(tmp_path / "mine.csv", STRAY.replace("\t", ",").format(last)))
    fifth = 'Tano, "sita"' if "sita" in last else last.split(",")[1]
    assert [row[1] for row in found] == ["Moja", '"Mbili', "Tatu", fifth, "Nne"]


TEXTS = ['"Habari," alisema.', '"Habari yako?"', 'Neno "moja', '""', '"', "\\n"]


@pytest.mark.parametrize("text", TEXTS)
def test_common_voice_quotes_nothing(tmp_path: Path, text: str) -> None:
    content = f"client_id\tpath\tsentence\tlocale\na\tx.mp3\t{text}\tsw\nb\ty.mp3\tDunia\tsw\n"
    assert [row[2] for row in values(read(tmp_path / "train.tsv", content))] == [text, "Dunia"]


def test_doubled_quotes_are_undone_beside_stray_ones(tmp_path: Path) -> None:
    content = 'language\ttext\nsw\t"Moja, ""mbili"""\nsw\t"Tatu\nsw\t""""\n'
    assert values(read(tmp_path / "mine.tsv", content)) == [["sw", 'Moja, "mbili"'], ["sw", '"Tatu'], ["sw", '"']]


def test_quotes_around_some_texts_with_tabs_are_part_of_them(tmp_path: Path) -> None:
    found = read(tmp_path / "mine.tsv", 'text\tlanguage\n"Habari yako?"\tsw\nDunia\tsw\n')
    assert values(found) == [['"Habari yako?"', "sw"], ["Dunia", "sw"]]
    found = read(tmp_path / "mine.tsv", '"text"\t"language"\n"Habari yako?"\t"sw"\n')  # everything is quoted
    assert values(found) == [["Habari yako?", "sw"]]


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (r'"alisema \"habari\" jana"', 'alisema "habari" jana'),
        (r'"alisema \"habari, jana\""', 'alisema "habari, jana"'),
        (r'"nyuma\\"', "nyuma\\\\"),
        (r'"C:\moja\"', "C:\\moja\\"),
        (r'"mistari \"miwili\"' + '\nya maneno"', 'mistari "miwili"\nya maneno'),
        ('alisema "habari" jana', 'alisema "habari" jana'),
        ('"Habari" alisema', '"Habari" alisema'),
        (' "Habari, rafiki"', "Habari, rafiki"),
    ],
)
def test_backslashes_and_loose_quotes(tmp_path: Path, field: str, text: str) -> None:
    assert values(read(tmp_path / "mine.csv", f"language,text\nsw,{field}\nsw,Dunia\n")) == [
        ["sw", text],
        ["sw", "Dunia"],
    ]


def test_a_line_whose_quotes_do_not_match_is_named(tmp_path: Path) -> None:
    found = read(tmp_path / "mine.csv", 'language,text\nsw,"Habari, rafiki" alisema\nsw,Dunia\n')
    assert found[0] == ("line 2", "its quotes don't match: 3 fields, and the header has 2 columns")
    assert values(found[1:]) == [["sw", "Dunia"]]


@pytest.mark.parametrize(
    ("name", "content", "options", "rows"),
    [
        ("a.csv", "language;text\nsw;moja, mbili\n", {}, [["sw", "moja, mbili"]]),
        ("a.csv", "language,text;x\nsw,moja;mbili\n", {}, [["sw", "moja;mbili"]]),
        ("a.csv", "language:text\nsw:moja\n", {"delimiter": ":"}, [["sw", "moja"]]),
        ("a.tsv", "language,text\nsw,moja\n", {}, [["sw", "moja"]]),
        ("a.csv", "language\ttext\nsw\tmoja, mbili\n", {"delimiter": "tab"}, [["sw", "moja, mbili"]]),
        ("a.csv", "language,text,,\nsw,a,,\nsw,b\nsw,c,,,,\n", {}, [["sw", "a"], ["sw", "b"], ["sw", "c"]]),
        ("a.csv", "\n\nlanguage,text\n\nsw,moja\n\n", {}, [["sw", "moja"]]),
        ("a.csv", "language, text \nsw,moja\n", {}, [["sw", "moja"]]),
        ("a.csv", "language,text\nsw,moja,x\n", {}, [["more fields than the header has columns (language, text)"]]),
        ("a.csv", "sep=;\nlanguage;text\nsw;moja\n", {}, [["sw", "moja"]]),
        ("a.csv", "PK\x03\x04\0\0\n\0\n", {}, [["no text file: its header holds NUL characters"]]),
        ("a.csv", "text,text\nsw,moja\n", {},
         [["the header has the column 'text' twice: rename one, or add a header line"]]),
        ("a.csv", "", {}, []),
    ],
)  # fmt: skip
def test_delimiters_and_headers(
    tmp_path: Path, name: str, content: str, options: dict[str, Any], rows: list[list[str]]
) -> None:
    assert values(read(tmp_path / name, content, **options)) == rows


def test_fleurs_has_no_header(tmp_path: Path) -> None:
    line = '{}\t10{}.wav\tWatu "wengi.\twatu wengi\tw a t u |\t{}\tMALE\n'
    found = read(tmp_path / "train.tsv", "".join(line.format(number, number, 1000 + number) for number in range(3)))
    assert [raw["file_name"] for _place, raw in found] == ["100.wav", "101.wav", "102.wav"]
    assert {(raw["raw_transcription"], raw["transcription"]) for _place, raw in found} == {
        ('Watu "wengi.', "watu wengi")
    }
