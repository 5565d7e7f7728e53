"""Every format of the table: a document that is read and written is the same, one that is filled in differs there."""

import random

import pytest

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.documents.placeholders import lost
from kauli.models.documents.table import FORMATS, open_document
from kauli.models.errors import UsageError
from support.generated_documents import MAKERS, made

OPTIONS = DocumentOptions("en", "am")


def test_every_format_is_made() -> None:
    assert MAKERS.keys() == FORMATS.keys()


def reread(document: Document, name: str) -> Document:
    return open_document(document.write(), name, OPTIONS)


@pytest.mark.parametrize("format", FORMATS)
def test_a_hundred_documents_of_a_format(format: str) -> None:
    for seed in range(100):
        name, data = made(format, seed)
        document = open_document(data, name, OPTIONS)
        assert document.format == format
        segments = list(document.segments)
        assert segments, data
        assert len({one.id for one in segments}) == len(segments)
        assert document.write() == data
        assert open_document(data, name, OPTIONS).segments == segments
        # The text itself as its translation: all that is around it must stay, and a second reading finds it
        for one in segments:
            document.fill(one.id, one.source, draft=True, note="look")
        again = reread(document, name)
        found = [one.target or one.source for one in again.segments]
        assert [" ".join(one.split()) for one in found] == [" ".join(one.source.split()) for one in segments]
        # One alone: all others keep their bytes
        document = open_document(data, name, OPTIONS)
        document.fill(segments[-1].id, "አማርኛ", draft=True)
        written = document.write()
        assert written[:8] == data[:8]
        kept = [(one.source, one.target) for one in reread(document, name).segments]
        expected = [(one.source, one.target) for one in segments]
        assert kept[:-1] == expected[:-1]
        assert any("አማርኛ".encode(name) in written for name in ("utf-8", "utf-16-le", "utf-16-be"))


@pytest.mark.parametrize("format", FORMATS)
def test_an_unknown_segment_can_t_be_filled_in(format: str) -> None:
    name, data = made(format, 1)
    with pytest.raises(KeyError):
        open_document(data, name, OPTIONS).fill("9999", "x", draft=True)


@pytest.mark.parametrize("data", [b"\xff\xfe\x00\x01\xff", b"\x00\x01\x02", "ä".encode("cp1252") * 9])
@pytest.mark.parametrize("format", FORMATS)
def test_bytes_that_are_no_text_are_one_error(format: str, data: bytes) -> None:
    with pytest.raises(UsageError) as error:
        open_document(data, MAKERS[format][0], OPTIONS)
    assert str(error.value).startswith(MAKERS[format][0])
    assert "\n" not in str(error.value)


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"a\.docx: no document format has this suffix\. Known: \.po, \.pot, \.xlf"):
        open_document(b"", "a.docx", OPTIONS)
    with pytest.raises(UsageError, match=r"unknown document format 'pp'\. Did you mean 'po'\?"):
        open_document(b"", "a.docx", OPTIONS, "pp")
    assert open_document(b"Hello\n", "a.docx", OPTIONS, "text").segments[0].source == "Hello"


@pytest.mark.parametrize(
    ("source", "target", "faults"),
    [
        ("%d of %s", "%s ከ %d", []),
        ("%1$s and %2$d", "%2$d %1$s", []),
        ("%d of %s", "%d", ["%s is missing"]),
        ("50% of it", "50% ከ", []),
        ("Hello {name}", "ሰላም {nome}", ["{name} is missing", "{nome} is not in the source"]),
        ("<b>x</b> &amp;", "<b>y</b> &amp;", []),
        ("<b>x</b>", "<b>y", ["</b> is missing", "its tags are not in order"]),
        ("%(n)s %PRODUCTNAME ${a} {{b}}", "%(n)s %PRODUCTNAME ${a} {{b}}", []),
        ("_File", "ፋይል", ["the accelerator _ is missing"]),
        ("~File", "ፋይል(~F)", []),
        ("R&D & more", "x", []),
        ("{n, plural, one {# file} other {# files}}", "{n, plural, other {# ፋይሎች}}", []),
        ("{n, plural, one {# file} other {# files}}", "{n, plural, other {#}", ["its braces do not match"]),
        ("see https://a.org/x", "https://a.org/x እዩ", []),
        ("a\n", "b", ["the line end at the end differs"]),
        ("100 %% sure %s", "%s", []),
        ("%1 of %2", "%2 ከ %1", []),
        ("%1 of %2", "%1 ከ 2", ["%2 is missing"]),
        ("on {0, date}", "በ {0, date}", []),
        ("Hi { $user }", "ሰላም", ["{ $user } is missing"]),
        (r"{\an8}Up", "ላይ", [r"{\an8} is missing"]),
        ("A [book][docs]", "[መጽሐፍ][ሰነድ]", ["[docs] is missing", "[ሰነድ] is not in the source"]),
        ("%s is open", "%sን ተከፈተ", []),
        ("{n, plural, one {a} other {b}} of %s", "{n, plural, other {ለ}}", ["%s is missing"]),
        ("<b>x</b> <i>y</i>", "<b>ሀ</i> <i>ለ</b>", ["its tags are not in order"]),
    ],
)
def test_what_does_not_survive(source: str, target: str, faults: list[str]) -> None:
    assert lost(source, target) == faults


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The document with an end that is missing, other bytes, a part that is missing or twice, or other line ends."""
    at = draw.randrange(len(data))
    to = min(len(data), at + draw.randrange(1, 60))
    inserted = (b'"', b"<", b">", b"&", b"\\", b"\n\n", b"\r\n", b"\x00", b"\xff", b"{", b"|", b"\t", "\u2028".encode())
    return draw.choice([
        data[:at], data[:at] + bytes([draw.randrange(256)]) + data[at + 1 :], data[:at] + data[to:],
        data[:to] + data[at:], data[:at] + draw.choice(inserted) + data[at:], data.replace(b"\n", b"\r\n"),
    ])  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_document_is_refused_or_keeps_its_bytes(format: str) -> None:
    read = 0
    for seed in range(100):
        name, data = made(format, seed)
        data = damaged(data, random.Random(seed))
        try:
            document = open_document(data, name, OPTIONS)
        except UsageError:
            continue
        read += 1
        assert document.write() == data
        for one in document.segments:
            document.fill(one.id, f"ሀ <b>&{one.source[:3]}", draft=True, note="look -- here")
        reread(document, name)
    assert read > 10
