"""Subtitles, plain text, tables, ELAN and TextGrid: what is a segment, and where drafts go."""

import json
import re
from pathlib import Path

import pytest
from praatio import textgrid  # type: ignore[import-untyped]
from pympi.Elan import Eaf  # type: ignore[import-untyped]

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.documents.table import open_document
from kauli.models.documents.tiers import elan_of, textgrid_of
from kauli.models.errors import UsageError
from support.generated_documents import made

SRT = "1\n00:00:01,000 --> 00:00:02,000\nHello there,\nfriend\n\n2\n00:00:03,000 --> 00:00:04,000\nBye\n"


def opened(text: str | bytes, name: str, **options: object) -> Document:
    data = text if isinstance(text, bytes) else text.encode()
    return open_document(data, name, DocumentOptions(**options))  # type: ignore[arg-type]


def sources(document: Document) -> list[str]:
    return [one.source for one in document.segments]


def test_subtitles() -> None:
    document = opened(SRT, "a.srt")
    assert sources(document) == ["Hello there, friend", "Bye"]
    document.fill("0", "ሰላም ለዚያ ወዳጄ", draft=True)
    assert document.write().decode() == SRT.replace("Hello there,\nfriend", "ሰላም ለዚያ\nወዳጄ")
    with pytest.raises(UsageError, match="no line has times"):
        opened("Hello\n", "a.srt")
    with pytest.raises(UsageError, match="a WebVTT file begins with WEBVTT"):
        opened(SRT, "a.vtt")


def test_tables() -> None:
    document = opened("id;en;am\n1;car;\n2;house;ቤት\n", "a.csv", source="en", target="am")
    assert [(one.source, one.target, one.state) for one in document.segments] == [
        ("car", "", "missing"), ("house", "ቤት", "confirmed"),
    ]  # fmt: skip
    document.fill("0", "መኪና; ቀይ", draft=True)
    assert document.write().decode() == 'id;en;am;kauli_state\n1;car;"መኪና; ቀይ";draft\n2;house;ቤት;\n'
    again = opened(document.write().decode(), "a.csv", source="en", target="am")
    assert [one.state for one in again.segments] == ["draft", "confirmed"]
    again.fill("0", "መኪና", draft=False)  # a person confirmed it
    assert again.write().decode() == "id;en;am;kauli_state\n1;car;መኪና;\n2;house;ቤት;\n"
    document = opened("en,am\ncar,\n", "a.csv", source="en", target="am")
    document.fill("0", "መኪና", draft=False)
    assert document.write().decode() == "en,am\ncar,መኪና\n"
    with pytest.raises(UsageError, match=r"which column holds the text\? It has x, y"):
        opened("x,y\n1,2\n", "a.csv")
    assert sources(opened("x,y\n1,2\n", "a.csv", columns=("y", "z"))) == ["2"]
    with pytest.raises(UsageError, match="has no column 'q'"):
        opened("x,y\n1,2\n", "a.csv", columns=("q", "z"))
    with pytest.raises(UsageError, match="row 2: 3 cells, but the header has 2"):
        opened("text,b\n1,2,3\n", "a.csv")
    with pytest.raises(UsageError, match="a quote is opened and never closed"):
        opened('text,b\n"1,2\n', "a.csv")
    with pytest.raises(UsageError, match="line 2: no JSON"):
        opened('{"text": "a"}\n{"text"\n', "a.jsonl")


def test_a_new_tier_of_elan_is_read_by_pympi(tmp_path: Path) -> None:
    name, data = made("eaf", 3)
    document = open_document(data, name, DocumentOptions("en", "am"))
    for one in document.segments:
        document.fill(one.id, f"ሀ & {one.id}", draft=True)
    (tmp_path / name).write_bytes(document.write())
    theirs = Eaf(str(tmp_path / name))
    spoken = theirs.get_annotation_data_for_tier("words")
    assert theirs.get_annotation_data_for_tier("am@kauli") == [
        (begin, end, f"ሀ & {one.id}") for (begin, end, _), one in zip(spoken, document.segments, strict=True)
    ]
    inserted = re.sub(rb"\s*<TIER[^>]*am@kauli.*?</TIER>", b"", document.write(), flags=re.DOTALL)
    assert inserted == data
    with pytest.raises(UsageError, match=r"has no tier 'x'\. It has: words, notes"):
        open_document(data, name, DocumentOptions(tier="x"))


@pytest.mark.parametrize("seed", range(6))
def test_a_new_tier_of_a_textgrid_is_read_by_praatio(tmp_path: Path, seed: int) -> None:
    name, data = made("textgrid", seed)
    document = open_document(data, name, DocumentOptions("en", "am"))
    for one in document.segments:
        document.fill(one.id, f'ሀ "{one.id}"', draft=True)
    (tmp_path / name).write_bytes(document.write())
    theirs = textgrid.openTextgrid(str(tmp_path / name), includeEmptyIntervals=True)
    found = [(one.start, one.end, one.label) for one in theirs.getTier("am@kauli").entries]
    assert [label for *_, label in found] == [f'ሀ "{one.id}"' for one in document.segments]
    words = theirs.getTier("words").entries
    assert [one[:2] for one in found] == [(one.start, one.end) for one in words]
    with pytest.raises(UsageError, match="the file is cut off or broken"):
        open_document(data[: len(data) // 4 * 3 // 2 * 2], name, DocumentOptions())


SPANS = [(0.5, 1.0, "Прывітанне & <свет>"), (1.0, 2.25, 'другое "слова"')]


def test_a_transcript_becomes_a_tier_of_elan(tmp_path: Path) -> None:
    (tmp_path / "a.eaf").write_bytes(elan_of(SPANS, "clip.wav"))
    new = Eaf(str(tmp_path / "a.eaf"))
    assert new.get_annotation_data_for_tier("transcript@kauli") == [(500, 1000, SPANS[0][2]), (1000, 2250, SPANS[1][2])]
    assert new.media_descriptors[0]["MEDIA_URL"] == "./clip.wav"
    name, data = made("eaf", 5)
    (tmp_path / name).write_bytes(elan_of(SPANS, "clip.wav", data, name))
    both = Eaf(str(tmp_path / name))
    assert len(both.get_annotation_data_for_tier("transcript@kauli")) == 2
    before = open_document(data, name, DocumentOptions())
    assert len(both.get_annotation_data_for_tier("words")) == len(before.segments)
    again = elan_of(SPANS, "clip.wav", (tmp_path / name).read_bytes(), name)  # a second transcript beside the first
    assert b"transcript@kauli-2" in again
    with pytest.raises(UsageError, match="its root element is <x>"):
        elan_of(SPANS, "clip.wav", b"<x/>", "a.eaf")


@pytest.mark.parametrize("seed", range(4))
def test_a_transcript_becomes_a_tier_of_a_textgrid(tmp_path: Path, seed: int) -> None:
    (tmp_path / "new.TextGrid").write_bytes(textgrid_of(SPANS, 3.0))
    name, data = made("textgrid", seed)
    (tmp_path / name).write_bytes(textgrid_of(SPANS, 3.0, data, name))
    for file in ("new.TextGrid", name):
        theirs = textgrid.openTextgrid(str(tmp_path / file), includeEmptyIntervals=True)
        entries = theirs.getTier("transcript@kauli").entries
        assert [(one.start, one.end, one.label) for one in entries] == [
            (0.0, 0.5, ""), *SPANS, (2.25, 3.0, ""),
        ]  # fmt: skip
    with pytest.raises(UsageError, match="does not begin as a TextGrid"):
        textgrid_of(SPANS, 3.0, b"x", name)


def test_cues_without_empty_lines_between_them() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nHello there\n2\n00:00:03,000 --> 00:00:04,000\nIt is\n1984\n"
    document = opened(text, "a.srt")
    assert [one.source for one in document.segments] == ["Hello there", "It is 1984"]
    document.fill("0", "ሰላም", draft=True)
    assert document.write().decode() == text.replace("Hello there", "ሰላም")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id,source\n1,one\u2028two\x0cthree\n2,four\n"),
        ("a.jsonl", '{"source": "one\u2028two"}\n{"source": "four"}\n'),
        ("a.po", 'msgid "one\u2028two"\nmsgstr ""\n\nmsgid "four"\nmsgstr ""\n'),
        ("a.md", "one\u2028two\n\nfour\n"),
    ],
)
def test_only_line_ends_end_lines(name: str, text: str) -> None:
    document = opened(text, name)
    assert len(document.segments) == 2
    assert "two" in document.segments[0].source
    for one in document.segments:
        document.fill(one.id, one.source, draft=True)
    assert [one.source for one in opened(document.write().decode(), name).segments] == [
        one.source for one in document.segments
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('id,source\n1,{"a\nb"\n', "row 2: a quote in the middle of a cell"),
        ('id,source\n1,a"b,c"\n', "row 2: a quote in the middle|row 2: 3 cells, but the header has 2"),
    ],
)
def test_quotes_in_the_middle_of_cells_are_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        opened(text, "a.csv")


def test_a_json_line_keeps_all_but_its_values() -> None:
    line = '{ "n":1.50, "text" : "caf\\u00e9",\t"target":"old" , "x":[1,  2]}\r\n'
    document = opened(line + '{"text":"b"}\n{"text": "c"}', "a.jsonl")
    for place, text in enumerate(("ሀ", "ለ")):
        document.fill(str(place), text, draft=False)
    assert document.write().decode() == line.replace('"old"', '"ሀ"') + '{"text":"b", "target": "ለ"}\n{"text": "c"}'
    document.fill("0", "መ", draft=True)
    assert json.loads(document.write().decode().splitlines()[0])["kauli_state"] == "draft"
    with pytest.raises(UsageError, match=r"a\.jsonl line 1, 'text' is not valid Unicode"):
        opened('{"text": "\\ud83d"}\n', "a.jsonl")


def test_a_cue_may_hold_an_empty_line() -> None:
    text = "1\n00:00:01,000 --> 00:00:02,000\nOne\n\ntwo\n\n2\n00:00:03,000 --> 00:00:04,000\nThree\n\n"
    document = opened(text, "a.srt")
    assert sources(document) == ["One two", "Three"]
    document.fill("0", "ሀ ለ", draft=True)
    assert document.write().decode().startswith("1\n00:00:01,000 --> 00:00:02,000\nሀ\nለ\n\n2\n")
    noted = "WEBVTT\n\n00:01.000 --> 00:02.000\nOne\n\nNOTE kept\n\nname\n00:03.000 --> 00:04.000\nTwo\n"
    assert sources(opened(noted, "a.vtt")) == ["One", "Two"]


def test_annotations_of_a_subdivision_follow_each_other() -> None:
    def one(id: str, before: str, text: str) -> str:
        return (
            f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{id}" ANNOTATION_REF="p"{before}>'
            f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
        )

    body = (
        one("a", "", "red") + one("b", ' PREVIOUS_ANNOTATION="a"', "big") + one("c", ' PREVIOUS_ANNOTATION="b"', "car")
    )
    text = f'<ANNOTATION_DOCUMENT><TIER TIER_ID="w" LINGUISTIC_TYPE_REF="t">{body}</TIER></ANNOTATION_DOCUMENT>'
    document = opened(text, "a.eaf", target="am")
    document.fill("a", "ቀይ", draft=True)
    document.fill("c", "መኪና", draft=True)
    new = document.write().decode().partition('TIER_ID="am@kauli"')[2]
    ids = re.findall(r'ANNOTATION_ID="([^"]+)"', new)
    assert re.findall(r'PREVIOUS_ANNOTATION="([^"]+)"', new) == ids[:1]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"])
def test_no_byte_order_mark_is_added(encoding: str) -> None:
    plain = {"utf-16": "utf-16-le", "utf-8-sig": "utf-8", "utf-32": "utf-32-be"}.get(encoding, encoding)
    data = "A red car\n".encode(plain)
    assert open_document(data, "a.txt", DocumentOptions(encoding=encoding)).write() == data


def test_what_an_encoding_lacks_is_found_with_the_first_text() -> None:
    document = open_document(b"A red car\n", "a.txt", DocumentOptions(encoding="cp1252"))
    document.check_text("voilà")
    with pytest.raises(UsageError, match="its encoding cp1252 has no 'ቀ'"):
        document.check_text("ቀይ")
    with pytest.raises(UsageError, match="there is no encoding 'base64'"):
        open_document(b"A\n", "a.txt", DocumentOptions(encoding="base64"))
