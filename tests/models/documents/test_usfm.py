"""USFM: what is a segment, what stays in place, and what a translation lacks or adds."""

import random
import time

import pytest

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.documents.placeholders import placeholders
from kauli.models.documents.table import open_document
from kauli.models.errors import UsageError

USFM = r"""\id GEN Test
\h Genesis
\mt1 Genesis
\c 1
\s1 The beginning
\p
\v 1 In the \nd Lord\nd*'s time\f + \fr 1:1 \ft Or: days\f* there was
\q1 a poem
\v 2-3 More\x - \xo 1:2 \xt Ps 1.1\x* here.
"""


def opened(text: str) -> Document:
    return open_document(text.encode(), "GEN.usfm", DocumentOptions())


def sources(document: Document) -> list[str]:
    return [one.source for one in document.segments]


def filled(text: str, *targets: str) -> str:
    document = opened(text)
    for one, target in zip(document.segments, targets, strict=True):
        document.fill(one.id, target, draft=True)
    return document.write().decode()


def test_usfm() -> None:
    document = opened(USFM)
    assert sources(document) == [
        "Genesis", "Genesis", "The beginning", "In the <nd>Lord</nd>'s time{f1} there was", "Or: days", "a poem",
        "More{f1} here.",
    ]  # fmt: skip
    assert [one.context for one in document.segments][3:] == ["GEN 1:1", "GEN 1:1 note", "GEN 1:1", "GEN 1:2-3"]
    assert [one.heading for one in document.segments] == [True, True, True, False, False, False, False]
    ids = [one.id for one in document.segments]
    document.fill(ids[3], "እ<nd>ጌታ</nd>{f1} ነበረ", draft=True)
    document.fill(ids[4], "ወይም", draft=True)
    document.fill(ids[6], "ሌላ", draft=True)  # its note's mark is lost
    expected = USFM.replace(r"In the \nd Lord\nd*'s time", r"እ\nd ጌታ\nd*").replace("f* there was", "f* ነበረ")
    expected = expected.replace("Or: days", "ወይም").replace(
        r"More\x - \xo 1:2 \xt Ps 1.1\x* here.", r"ሌላ\x - \xo 1:2 \xt Ps 1.1\x*"
    )
    assert document.write().decode() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", r"GEN\.usfm line 1: a USFM file begins with \\id"),
        (USFM.replace(r"\f*", ""), r"GEN\.usfm line 7: a \\f has no \\f\*"),
        (USFM.replace(r"\x*", r"\x*\f*"), r"line 9: a \\f has no \\f\*, or the other way round"),
        (USFM.replace(r"\x*", r"\f*"), r"line 9: a \\x has no \\x\*"),
        (USFM + r"\f + " * 1000 + r"\f*" * 1000, r"line 10: a \\f has no"),
    ],
)
def test_broken_usfm(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(text)


CASES = [
    (r"\c 1\v 1 a \c 2 \v 2-3 b\v 4a c", ["a", "b", "c"]),
    (r"\v 3 \va 4\va* \vp 3b\vp* one \va 5\va* two", ["one {m1} two"]),
    (r"\c 1 \ca 2\ca*" "\n" r"\cp A" "\n" r"\cl Chapter one" "\n" r"\cd About it", ["Chapter one", "About it"]),
    (r'\v 1 a \w gnat|lemma="x"\w* b', ["a <w:1>gnat</w:1> b"]),
    (r"\v 1 \rb BB|gloss\rb* and \rb C|g:h\rb*", ["<rb:1>BB</rb:1> and <rb:2>C</rb:2>"]),
    (r'\v 1 a \fig Map|src="a.jpg" ref="1"\fig* b', ["a {fig1} b", "Map"]),
    (r"\v 1 a \fig |a.jpg|col|||A map|1.1\fig* \fig |src=" '"b"' r"\fig* b", ["a {fig1} {fig2} b", "A map"]),
    (r'\v 1 \qt-s |sid="x" who="Paul"\*He said\qt-e\* so', ["He said{m1} so"]),
    (
        r'\v 1 \zaln-s |x-strong="G1"\*\w In|n="1"\w* \w it|n="1"\w*\zaln-e\* \zaln-s |x\*\w is|y\w*\zaln-e\*.',
        ["<w:1>In</w:1> <w:2>it</w:2>{m1} {m2}<w:3>is</w:3>{m3}."],
    ),
    ("\\v 1 a\n\\ts\\*\n\\v 2 b", ["a", "b"]),
    ("\\p\n\\v 1 a\n\\newone b\n\\zcustom kept\n\\s5\n\\q9 c", ["a", "b", "c"]),
    (r"\v 1 a \add b", ["a {m1}b"]),
    (r"\v 1 \add a \+nd b\+nd*\add* \nd c\nd*", ["<add>a <nd:1>b</nd:1></add> <nd:2>c</nd:2>"]),
    (r"\v 1 a~b // c|d \ e", [r"a~b // c|d \ e"]),
    (r"\v 1 a\f + \fr 1:1 \fq b \ft c \fv 3\fv* d \xt Ps 1\xt* e\f* f", ["a{f1} f", "b", "c {m1} d {m2} e"]),
    (r"\v 1 a\f + \ft b \x - \xo 1 \xt c\x* \+nd d\+nd*\f*", ["a{f1}", "b {f1} <nd>d</nd>"]),
    (r"\v 1 a\f + b \fq c\fq* d\f*", ["a{f1}", "b", "c", "d"]),
    (r"\v 1 \fe 1 \ft a\fe*", ["a"]),
    (r"\v 1 \f a \fr 1 \ft b\f* c", ["{f1} c", "b"]),
    (r"\rem \p \f no markup" "\n" r"\ide UTF-8" "\n" r"\sts 2" "\n" r"\h Book", ["Book"]),
    (r"\periph Title Page|id=" '"title"', ["Title Page"]),
    (r"\tr \th1 a \thr2 b \tc1-2 c \tcr3 4", ["a", "b", "c"]),
    (r"\q1 a \qs Selah\qs*" "\n" r"\qs Selah\qs*" "\n" r"\b" "\n" r"\r (Ps 1)", ["a <qs>Selah</qs> <qs>Selah</qs>"]),
    (r"\v 1 a {f1} <nd> \nd b\nd* \f + \ft c\f*", ["a {f1} <nd> <nd:1>b</nd:1> {f2}", "c"]),
    (r"\v 1 5, 6 " "\n" r"\p", []),
    (r"\p\nd a\nd*\p b\v 1\nd c\nd*", ["<nd>a</nd>", "b", "<nd>c</nd>"]),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("text", "expected"), CASES)
def test_segments(text: str, expected: list[str], end: str) -> None:
    text = f"\\id GEN\n{text}\n".replace("\n", end)
    document = opened(text)
    assert sources(document) == expected
    assert document.write() == text.encode()
    for target in expected:
        assert sum(placeholders(target).values()) >= target.count("{") + target.count("<")
    longer = ["x" + one for one in expected]
    again = opened(filled(text, *longer))
    assert sources(again) == longer
    for part in ("|", r"\*", r"\fr 1:1", r"\va 4\va*", r"\zcustom kept"):
        assert again.write().decode().count(part) == text.count(part)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        (r'a \w b|l="1"\w* \w c|l="2"\w*', "<w:2>C</w:2> <w:1>B</w:1>", r'\w C|l="2"\w* \w B|l="1"\w*'),
        (r"a\f + \ft b\f* \qt-e\* c", "x", r"x\f + \ft b\f*\qt-e\*"),
        (r"a\f + \ft b\f*\x - \xt c\x*", "{f2}x{f1}", r"\x - \xt c\x*x\f + \ft b\f*"),
        (r"a \nd b\nd*", "x <nd>y", "x y"),
        (r"a \nd b\nd*", "</nd>x<nd>y</nd></nd>", r"x\nd y\nd*"),
        (r"a \nd b\nd*", "<b>x</b> <nd>y|z</nd>", r"<b>x</b> \nd y/z\nd*"),
        ("a", r"x \v 2 y\f* \ z", r"x \ v 2 y\ f* \ z"),
        ("a", " x\n\n y ", "x y"),
        (r"\nd a\nd*", "x", "x"),
        (r"a \add b", "x {m1} y", r"x \add  y"),
    ],
)
def test_where_a_translation_goes(text: str, target: str, expected: str) -> None:
    document = opened(f"\\id GEN\n\\p\n\\v 1 {text}\n\\p\n")
    document.fill(document.segments[0].id, target, draft=True)
    assert document.write().decode() == f"\\id GEN\n\\p\n\\v 1 {expected}\n\\p\n"


def test_a_note_is_written_where_its_mark_stands() -> None:
    text = "\\id GEN\n\\v 1 \\f + \\ft one \\x - \\xta two\\x*\\f* a\n"
    document = opened(text)
    assert sources(document) == ["{f1} a", "one {f1}", "two"]
    written = filled(text, "A {f1}", "{f1} B", "C")
    assert written == "\\id GEN\n\\v 1 A \\f + \\ft \\x - \\xta C\\x* B\\f*\n"
    document.fill(document.segments[2].id, "C", draft=True)  # alone
    assert document.write().decode() == text.replace("two", "C")


def test_words_stay_apart_from_a_marker() -> None:
    text = "\\id GEN\n\\p\\nd a\\nd*\n\\v 1\\nd b\\nd*\n"
    assert filled(text, "x", "<nd>y</nd>") == "\\id GEN\n\\p x\n\\v 1\\nd y\\nd*\n"


@pytest.mark.parametrize("seed", range(300))
def test_any_markers_together(seed: int) -> None:
    draw = random.Random(seed)
    parts = ("\\p ", "\\v 1 ", "\\c 2 ", "\\q1\n", "word", "a b", "\\nd x\\nd*", "\\+nd y\\+nd*", "\\ts\\*",
             '\\w g|l="x"\\w*', "\\f + \\fr 1:1 \\ft note\\f*", "\\x - \\xo 1:1 \\xt Ps\\x*", '\\qt-s |sid="x"\\*',
             "\\va 3\\va*",
             "\\add ", '\\fig cap|src="a"\\fig*', "\\zx foo\n", "\\new foo", "\n", "\r\n", "~", "//", "\\*",
             "\\rem \\f\n", "\\xt G\\xt*", "{f1}", "<nd>", "\\f + \\ft a \\x - \\xt q\\x* b\\f*",
             "\\bk\\+it x\\+it*\\bk*")  # fmt: skip
    text = "\\id GEN\n" + "".join(draw.choice(parts) + draw.choice(["", " ", "\n"]) for _ in range(draw.randint(1, 30)))
    document = opened(text)
    assert document.write() == text.encode()
    assert len({one.id for one in document.segments}) == len(document.segments)
    longer = ["x" + one for one in sources(document)]
    assert sources(opened(filled(text, *longer))) == longer
    kept = sources(document)
    some = [one if draw.random() < 0.5 else "x" + one for one in kept]
    for one, target in zip(document.segments, some, strict=True):
        if target != one.source:
            document.fill(one.id, target, draft=True)
    assert sources(opened(document.write().decode())) == some


VERSE = (
    "\\v 12 And it came to pass in those days, that there went out a decree from \\nd Caesar\\nd* Augustus, that all "
    "the world should be taxed.\n\\q1 and more of the same\\f + \\fr 1:1 \\ft Or: so\\f*\n"
)


@pytest.mark.parametrize(
    "text",
    [
        VERSE * (5_000_000 // len(VERSE)), "\\add x " * 100_000, "\\add x\\nd* " * 100_000, "\\nd x\\nd* " * 100_000,
        "\\nd " * 50_000 + "x" + "\\nd*" * 50_000, "\\" * 5_000_000, "a" + " " * 5_000_000 + "b", "\\p  " * 200_000,
        "\\w " + "|" * 2_000_000 + "a\\w*", "<a" * 1_000_000, "{a" * 1_000_000,
        "\\v 1 \\zaln-s |x\\*\\w a|y\\w*\\zaln-e\\*" * 50_000,
    ],
    ids=range(12),
)  # fmt: skip
def test_a_large_book_is_read_in_time(text: str) -> None:
    text = f"\\id GEN\n\\p {text}"
    begin = time.process_time()
    document = opened(text)
    assert time.process_time() - begin < 9
    for one in document.segments:
        document.fill(one.id, one.source, draft=True)
    begin = time.process_time()
    document.write()
    assert time.process_time() - begin < 9
