"""Markdown: what is a segment, what stays, and translations that must not become other blocks."""

import random
import time

import pytest

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.documents.table import open_document

PAGE = """---
title: kept
---
# Heading #

First `code` and
[link](https://a.org).

- item *one*
- item two

```
kept
```

| a | b |
| - | - |
"""


def opened(text: str) -> Document:
    return open_document(text.encode(), "a.md", DocumentOptions())


def sources(text: str) -> list[str]:
    return [one.source for one in opened(text).segments]


def filled(text: str, *targets: str) -> str:
    document = opened(text)
    for one, target in zip(document.segments, targets, strict=True):
        document.fill(one.id, target, draft=True)
    return document.write().decode()


def test_a_page() -> None:
    assert sources(PAGE) == ["Heading", "First `code` and [link](https://a.org).", "item *one*", "item two", "a", "b"]
    assert [one.heading for one in opened(PAGE).segments] == [True, *[False] * 5]
    expected = PAGE.replace("Heading", "A").replace("First `code` and\n[link](https://a.org).", "B")
    expected = expected.replace("item *one*", "C").replace("item two", "D").replace("| a | b |", r"| E\|e | F |")
    assert filled(PAGE, "A", "B", "C", "D", "E|e", "F") == expected


CASES = [
    ("+++\na = 'b'\n+++\nText\n", ["Text"]),
    ("---\na: b\n...\nText\n", ["Text"]),
    ("---\nno front matter\n", ["no front matter"]),
    ("Text\n\n---\na: b\n---\n", ["Text", "a: b"]),
    ("---\n\nText\n\n---\n", ["Text"]),
    ("$$\na\n= b\n$$\nText $$x$$ on\n", ["Text $$x$$ on"]),
    ("Text\n$$ a $$\nmore\n", ["Text", "more"]),
    ("$$ no end\n\nText\n", ["$$ no end", "Text"]),
    ("~~~ x\n# kept\n~~~\n\n    kept\n\n\tkept\n\n````\n```\nkept\n````\n", []),
    ("<div>\nkept\n</div>\n\n<!-- kept\n\nkept -->\nText <b>b</b>\n", ["Text <b>b</b>"]),
    ("[a]: /url\n  'title'\n[b]: <c d>\nText\n\n***\n* * *\n___\n", ["Text"]),
    ("Title\nof two\n===\nOther\n---\n# One ##\n#\n####### none\n", ["Title of two", "Other", "One", "####### none"]),
    ("> a\n> b\nlazy\n> > c\n>> d\n", ["a b lazy", "c d"]),
    ("> a\n>\n> > c\n> > d\n", ["a", "c d"]),
    ("- a\n  b\n\n  c\n  - d\n    1) e\n\n       f\n- [x] g\n- [ ] h\n  i\n", ["a b", "c", "d", "e", "f", "g", "h i"]),
    ("1. > a\n   > b\n2. # C\n10. d\n- e\n", ["a b", "C", "d", "e"]),
    ("a  \nb\\\nc\\\\\nd  \n", ["a<br/>b<br/>c\\\\ d"]),
    ("> a  \n> b\n", ["a<br/>b"]),
    ("a[^1] b\n\n[^1]: note\n    on\n\n    more\n[^2]: word\n\nText\n", ["a[^1] b", "note on", "more", "word", "Text"]),
    ("> [!NOTE]\n> a\n> b\n", ["a b"]),
    ("\ta\n\nb\tc\n-\td\n\n\te\n", ["b\tc", "d", "e"]),
    ("a | b\n:-- | --:\nc\\|d | `e`\nf\n\n> | g |\n> |---|\n> | 1 |\n", ["a", "b", "c|d", "`e`", "f", "g"]),
    ("\\# a\n\n1\\. b\n\n\\- c\n\n\\*d\\*\n", ["# a", "1. b", "- c", "\\*d\\*"]),
    ("a\n2. b\n", ["a 2. b"]),
    ("12 + 3\n\n***\n\n| 1 |\n|---|\n", []),
    ("", []),
    ("last", ["last"]),
    ("* a\n+ b\n", ["a", "b"]),
    ("-\n  a\n", ["a"]),
]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("text", "expected"), CASES)
def test_segments(text: str, expected: list[str], end: str) -> None:
    text = text.replace("\n", end)
    assert sources(text) == expected
    assert opened(text).write() == text.encode()
    longer = ["x" + one for one in expected]
    assert sources(filled(text, *longer)) == longer
    assert sources(filled(text, *expected)) == expected


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("> a\n> b\n> c\n", "x\ny\r\n\r\n  z", "> x y z\n"),
        ("> a  \n> b\\\n> c\n", "x<br/>y <br/> z", "> x  \n> y\\\n> z\n"),
        ("a\\\r\nb\r\n", "x<br/># y<br/>z", "x\\\r\n\\# y\\\r\nz\r\n"),
        ("a  \nb\n", "<br/>x<br/>", "<br/>x<br/>\n"),
        ("- [ ] a\n  b", "[x] c", "- [ ] \\[x] c"),
        ("## a ##  \n", "b ##", "## b \\## ##  \n"),
        ("a\n===\n", "b\nc", "b c\n===\n"),
        ("[a]: b\nc\n", '"d"', '[a]: b\n\\"d"\n'),
        ("a|b\n-|-\nc|d\n", "- x", "\\- x|b\n-|-\nc|d\n"),
        ("|a|\n|-|\n", "x\\", "|x\\ |\n|-|\n"),
        ("a\n---\n", "| x", "&#124; x\n---\n"),
        ("a\n", "1986. x", "1986\\. x\n"),
        ("a\n", "*x* and **y**", "*x* and **y**\n"),
        ("a\n", "$$x$$ is", "$$x$$ is\n"),
    ],
)
def test_where_a_translation_goes(text: str, target: str, expected: str) -> None:
    document = opened(text)
    document.fill("0", target, draft=True)
    assert document.write().decode() == expected


SIGNS = (
    "# ", "###### ", "- ", "+ ", "* ", "1. ", "12) ", "> ", "    ", "\t", "+++", "---", "===", "***", "_ _ _", "$$",
    "```", "~~~ ", "<div> ", "</p>", "<!-- ", "<?", "<![CDATA[", "<!A", "[a]: ", "[^1]: ", "[ ] ", "[x] ", "[!NOTE]",
    "$$ ", "|", "| - |", ":-", "--- | ---", "- - -", '"q" ', "(q)", "&#35; ", "-", "=", "#", "1.",
)  # fmt: skip
"""What would begin another block."""
PLACES = (
    "{}\n", "# {}\n", "#### {} ####\n", "{}\n===\n", "{}\n---\n", "- {}\n- {}\n", "1. {}\n\n   {}\n", "> {}\n> > {}\n",
    "> a\n> {}\n", "- [ ] {}\n", "[^n]: {}\n\n    {}\n", "[d]: /url\n{}\n", "| {} | {} |\n|---|---|\n| {} | {} |\n",
    "{} | {}\n--- | ---\n{} | {}\n", "a  \n{}\\\nb\n", "# T\n{}\n***\n", "```\ncode\n```\n{}\n<div>\n</div>\n",
    "> [!TIP]\n> {}\n",
)  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_a_translation_stays_in_its_block(place: str) -> None:
    text = "Before\n\n" + place.replace("{}", "word") + "\nBehind\n"
    kept = opened(text).segments
    for sign in SIGNS:
        for target in (f"{sign}word", f"{sign} word {sign}".strip(), f"{sign}\nword"):
            again = opened(filled(text, *[target] * len(kept))).segments
            expected = " ".join(one.strip(" \t") for one in target.split("\n")).strip(" \t")
            assert [one.source for one in again] == [expected] * len(kept), (place, target)
            assert [one.heading for one in again] == [one.heading for one in kept]


@pytest.mark.parametrize("seed", range(300))
def test_any_blocks_together(seed: int) -> None:
    draw = random.Random(seed)
    parts = ("a word", "# T", "- ", "1. ", "> ", "    ", "\t", "\n", "\n\n", "\r\n", "```\n", "$$\n", "---\n", "===\n",
             "| a | b |\n|---|---|\n", "[x]: /u\n", "[^1]: ", "<div>", "<!-- c -->\n", "`c`", "  \n", "\\\n", "[ ] ",
             "> [!NOTE]\n", "**b**", "\\- x", "\u00a0", "[l](u)")  # fmt: skip
    text = "".join(draw.choice(parts) + draw.choice(["", " ", "\n"]) for _ in range(draw.randint(1, 30)))
    found = sources(text)
    assert opened(text).write() == text.encode()
    longer = ["x" + one for one in found]
    assert [" ".join(one.split()) for one in sources(filled(text, *longer))] == [
        " ".join(one.split()) for one in longer
    ]
    targets = [draw.choice(SIGNS) + "word" for _ in found]
    assert sources(filled(text, *targets)) == [one.strip() for one in targets]


@pytest.mark.parametrize(
    "text",
    [
        PAGE * 600, "word and more\n" * 100_000, "[word\n" * 100_000, "> " * 20 + "word\n" * 10_000,
        "- word\n" * 10_000, "$$ a\n" * 100_000, "a | b\n" * 100_000, ">" * 20_000 + "a\n",
        ("a" + " " * 100_000 + "b\n") * 2, "a" + "\\" * 100_000 + "\nb\n",
        "# a\n" * 10_000, "|" * 10_000 + "\n" + "|-" * 9_999 + "|\n", "`" * 50_000,
        "<!-- a\n" * 10_000, "- [^1]: a\n" * 5_000, "- " * 5_000 + "a\n",
    ],
    ids=range(16),
)  # fmt: skip
def test_a_long_document_is_read_in_time(text: str) -> None:
    begin = time.process_time()
    document = opened(text)
    assert time.process_time() - begin < 6
    for one in document.segments:
        document.fill(one.id, "- word", draft=True)
    begin = time.process_time()
    document.write()
    assert time.process_time() - begin < 6
