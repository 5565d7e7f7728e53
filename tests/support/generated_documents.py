"""Documents of every format, made from a seed: of the shapes that translators have, with placeholders and markup."""

import csv
import io
import json
import random
from collections.abc import Callable
from xml.sax.saxutils import escape

TEXTS = (
    "Open file", "&Save as...", "_Close", "%d of %s files", "Hello, {name}!", "Page {0} of {1}",
    "Click <b>here</b> now.", "Terms &amp; conditions", "Write to help@example.org", "See https://example.org/a?b=c",
    "A long sentence, with words.", "%PRODUCTNAME could not be started.", "Say \"yes\" or 'no'", "100% done",
    "Ünïcödé – text…", "Tab\tand more", "{n, plural, one {# file} other {# files}}", "Line one",
    "Costs $5; not $${x}", "Back\\slash",
)  # fmt: skip
"""Single lines."""


def po(draw: random.Random) -> bytes:
    end = draw.choice(["\n", "\r\n"])
    out = ['msgid ""', 'msgstr ""', '"Content-Type: text/plain; charset=UTF-8\\n"', '"Language: am\\n"',
           '"Plural-Forms: nplurals=2; plural=(n > 1);\\n"', ""]  # fmt: skip
    for at in range(draw.randint(3, 12)):
        text = _po(draw.choice(TEXTS))
        out += draw.choice([[], ["# comment"], ["#. note", f"#: src/a.c:{at}"], ["#, fuzzy"], ["#, c-format"]])
        if draw.random() < 0.3:
            out.append(f'msgctxt "c{at}"')
        wrapped = draw.random() < 0.3 and len(text) > 12 and "\\" not in text
        out += ['msgid ""', f'"{text[:9]}"', f'"{text[9:]} {at}"'] if wrapped else [f'msgid "{text} {at}"']
        if draw.random() < 0.2:
            out += [f'msgid_plural "{text} {at}s"', 'msgstr[0] ""', 'msgstr[1] ""', ""]
        else:
            out += [f'msgstr "{draw.choice(["", "x " + text])}"', ""]
    if draw.random() < 0.4:
        out += ['#~ msgid "old"', '#~ msgstr "alt"', ""]
    return end.join(out).encode()


def table(draw: random.Random) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=draw.choice(["\n", "\r\n"]), quoting=draw.choice([0, 1]))
    writer.writerow(["id", "source", *draw.choice([[], ["target"]])])
    width = out.getvalue().count(",") + 1
    for at in range(draw.randint(2, 9)):
        writer.writerow([str(at), draw.choice(TEXTS) + draw.choice(["", "\nsecond line", ', "quoted"'])]
                        + [""] * (width - 2))  # fmt: skip
    return draw.choice([b"", "\ufeff".encode()]) + out.getvalue().encode()


def json_lines(draw: random.Random) -> bytes:
    lines = [json.dumps({"id": at, "text": draw.choice(TEXTS), "tags": ["a"]}, ensure_ascii=draw.random() < 0.5)
             for at in range(draw.randint(2, 9))]  # fmt: skip
    return "\n".join([*lines, *draw.choice([[], [""]])]).encode()


def srt(draw: random.Random) -> bytes:
    end = draw.choice(["\n", "\r\n"])
    cues = []
    for at in range(1, draw.randint(3, 9)):
        body = end.join(draw.choice(TEXTS) for _ in range(draw.randint(1, 2)))
        cues.append(f"{at}{end}00:00:{at:02},000 --> 00:00:{at:02},900{end}{body}{end}")
    return draw.choice([b"", "\ufeff".encode()]) + end.join(cues).encode()


def vtt(draw: random.Random) -> bytes:
    cues = ["WEBVTT - title", "NOTE a comment\nof two lines", "STYLE\n::cue { color: red }"]
    for at in range(1, draw.randint(3, 9)):
        name = draw.choice(["", f"cue-{at}\n"])
        setting = draw.choice(["", " align:start position:10%"])
        cues.append(f"{name}00:{at:02}.000 --> 00:{at:02}.900{setting}\n<v Bob>{draw.choice(TEXTS)}</v>")
    return ("\n\n".join(cues) + draw.choice(["", "\n"])).encode()


def plain(draw: random.Random) -> bytes:
    end = draw.choice(["\n", "\r\n"])
    paragraphs = [end.join(draw.choice(TEXTS) for _ in range(draw.randint(1, 3))) for _ in range(draw.randint(2, 6))]
    return (
        draw.choice(["", end, "  "]) + (end * draw.randint(2, 3)).join(paragraphs) + draw.choice(["", end])
    ).encode()


def xliff(draw: random.Random) -> bytes:
    """XLIFF 1.2 or 2.0."""
    two = draw.random() < 0.5
    out = ['<?xml version="1.0" encoding="UTF-8"?>']
    if two:
        out += ['<xliff xmlns="urn:oasis:names:tc:xliff:document:2.0" version="2.0" srcLang="en" trgLang="am">',
                ' <file id="f">']  # fmt: skip
    else:
        out += ['<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">',
                ' <file source-language="en" target-language="am" original="a" datatype="x"><body>']  # fmt: skip
    for at in range(draw.randint(2, 7)):
        text = draw.choice(
            [escape(draw.choice(TEXTS)), f'Click <g id="1">here</g> {at} times', 'A <x id="2"/> &amp; b']
        )
        state = draw.choice(["", "new", "translated", "final"])
        own = f"<target{f' state={chr(34)}{state}{chr(34)}' * bool(state)}>{text}</target>" if state else ""
        if two:
            out += [f'  <unit id="u{at}"><notes><note>n</note></notes>', "   <segment>",
                    f"    <source>{text}</source>", "   </segment>", "  </unit>"]  # fmt: skip
        else:
            out += [f'  <trans-unit id="{at}">', f"    <source>{text}</source>", *([f"    {own}"] if own else []),
                    "  </trans-unit>"]  # fmt: skip
    out += [" </file>" if two else " </body></file>", "</xliff>", ""]
    return "\n".join(out).encode()


def tmx(draw: random.Random) -> bytes:
    out = ['<?xml version="1.0" encoding="UTF-8"?>', '<!DOCTYPE tmx SYSTEM "tmx14.dtd">', '<tmx version="1.4">',
           '  <header srclang="en" segtype="sentence" adminlang="en" o-tmf="x" datatype="plaintext" creationtool="t" '
           'creationtoolversion="1"/>', "  <body>"]  # fmt: skip
    for at in range(draw.randint(2, 7)):
        text = draw.choice([escape(draw.choice(TEXTS)), f'A <bpt i="1">b</bpt>bold<ept i="1">e</ept> {at}'])
        other = '<tuv xml:lang="fr"><seg>fr</seg></tuv>' if draw.random() < 0.5 else ""
        own = f'<tuv xml:lang="am"><seg>{text}</seg></tuv>' if draw.random() < 0.4 else ""
        out += [f'    <tu tuid="{at}">', f'      <tuv xml:lang="en-US"><seg>{text}</seg></tuv>', f"      {other}{own}",
                "    </tu>"]  # fmt: skip
    return "\n".join([*out, "  </body>", "</tmx>", ""]).encode(draw.choice(["utf-8", "utf-8-sig"]))


def usfm(draw: random.Random) -> bytes:
    end = draw.choice(["\n", "\r\n"])
    out = [
        "\\id GEN a comment",
        "\\h Genesis",
        "\\toc1 The First Book",
        "\\mt1 Genesis",
        "\\c 1",
        "\\s1 The beginning",
        "\\p",
    ]
    for verse in range(1, draw.randint(3, 9)):
        text = draw.choice((
            "In the beginning God made all.", "And the \\nd Lord\\nd* spoke,", "It was \\add very\\add* good",
            "he said\\f + \\fr 1:3 \\ft Or: he called\\f* it so", "as is written\\x - \\xo 1:4 \\xt Ps 33.6\\x* here.",
            "\\va 3\\va* \\vp 3b\\vp* a \\w gnat|lemma=\"x\"\\w* and \\rb BB|gloss\\rb*", "a~word // on",
            "\\qt-s |sid=\"x\" who=\"Pilate\"\\*What is \\wj true, \\+nd Lord\\+nd*\\wj*?\\qt-e\\*",
            "\\zaln-s |x-strong=\"G1\"\\*\\w In|x-occurrence=\"1\"\\w*\\zaln-e\\* \\w time|x-occurrence=\"1\"\\w*",
            "a note\\f + \\ft of \\fv 3\\fv* \\+nd more\\+nd* \\x - \\xt Ps 1\\x*\\f* in a note",
            "\\fig A map|src=\"a.jpg\" ref=\"1.1\"\\fig* with words",
        ))  # fmt: skip
        out.append(f"\\v {verse} {text}")
        out += draw.choice([[], [], ["\\q1 and a line of a poem", "\\q2 goes on"], ["\\p"], ["\\b"], ["\\ts\\*"],
                            ["\\zcustom kept"], ["\\newer goes on"], ["\\rem \\f"], [f"\\c {verse}"]])  # fmt: skip
    return (end.join(out) + draw.choice(["", end])).encode()


def markdown(draw: random.Random) -> bytes:
    blocks = draw.sample((
        "# A title", "Title two\n=========", "A paragraph with `code` and [a link](https://example.org/a_b).",
        "Two lines\nof one paragraph.", "- one item\n- another *item*\n  that goes on", "1. first\n2. second",
        "> a quote\n> goes on", "```python\nprint('kept')\n```", "    indented code",
        "| a | b |\n| --- | --- |\n| c | d |",
        "<div>\nraw\n</div>", "[ref]: https://example.org", "---", "- [ ] a task", "Text with **bold** &amp; more  ",
        "A line\\\nand another  \nand\na third", "> a quote\n>\n> > in a quote  \n> > goes on\nand on",
        "- loose\n\n  1) nested\n\n     more\n- tight",
        "A note[^1]\n\n[^1]: is a note\n    of two lines\n\n    and more", "$$\na = b\n$$\nText",
        "a | b\n:-- | --\nc\\|d | `e`", "> [!NOTE]\n> an alert", "<!-- kept\n\nkept -->",
        "Title\nof two lines\n---", "## Title ##", "~~~\n# kept\n~~~", "\\# no title", "[a]: /b\n  'c'\nText behind",
    ), draw.randint(4, 12))  # fmt: skip
    front = draw.choice(["", "---\ntitle: kept\n---\n\n", "+++\ntitle = 'kept'\n+++\n"])
    text = front + "Some text first.\n\n" + "\n\n".join(blocks) + draw.choice(["", "\n"])
    return text.replace("\n", draw.choice(["\n", "\r\n"])).encode()


def eaf(draw: random.Random) -> bytes:
    count = draw.randint(2, 6)
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="ts{n}" TIME_VALUE="{n * 500}"/>' for n in range(1, count + 2))
    out = ['<?xml version="1.0" encoding="UTF-8"?>',
           '<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0" '
           'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
           'xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">',
           '    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds"/>', f"    <TIME_ORDER>{slots}</TIME_ORDER>",
           '    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="words">']  # fmt: skip
    out += [f'        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{n}" TIME_SLOT_REF1="ts{n}" '
            f'TIME_SLOT_REF2="ts{n + 1}">'
            f"<ANNOTATION_VALUE>{escape(draw.choice(TEXTS))}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
            for n in range(1, count + 1)]  # fmt: skip
    out += ["    </TIER>", '    <TIER LINGUISTIC_TYPE_REF="default-lt" TIER_ID="notes"/>',
            '    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>',
            "</ANNOTATION_DOCUMENT>", ""]  # fmt: skip
    return "\n".join(out).encode()


def textgrid(draw: random.Random) -> bytes:
    texts = [draw.choice(TEXTS).replace('"', '""') for _ in range(draw.randint(2, 6))]
    size, end = len(texts), draw.choice(["\n", "\r\n"])
    if draw.random() < 0.4:
        out = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(size), "<exists>", "1",
               '"IntervalTier"', '"words"', "0", str(size), str(size)]  # fmt: skip
        for at, text in enumerate(texts):
            out += [str(at), str(at + 1), f'"{text}"']
    else:
        out = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0 ", f"xmax = {size} ",
               "tiers? <exists> ", "size = 2 ", "item []: ", "    item [1]:", '        class = "IntervalTier" ',
               '        name = "words" ', "        xmin = 0 ", f"        xmax = {size} ",
               f"        intervals: size = {size} "]  # fmt: skip
        for at, text in enumerate(texts):
            out += [f"        intervals [{at + 1}]:", f"            xmin = {at} ", f"            xmax = {at + 1} ",
                    f'            text = "{text}" ']  # fmt: skip
        out += ["    item [2]:", '        class = "TextTier" ', '        name = "empty" ', "        xmin = 0 ",
                f"        xmax = {size} ", "        points: size = 0 "]  # fmt: skip
    return (end.join(out) + end).encode(draw.choice(["utf-8", "utf-16"]))


def _po(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")


MAKERS: dict[str, tuple[str, Callable[[random.Random], bytes]]] = {
    "po": ("app.po", po),
    "xliff": ("app.xlf", xliff),
    "tmx": ("memory.tmx", tmx),
    "csv": ("table.csv", table),
    "jsonl": ("rows.jsonl", json_lines),
    "srt": ("film.srt", srt),
    "vtt": ("film.vtt", vtt),
    "usfm": ("GEN.usfm", usfm),
    "markdown": ("page.md", markdown),
    "eaf": ("talk.eaf", eaf),
    "textgrid": ("talk.TextGrid", textgrid),
    "text": ("letter.txt", plain),
}
"""Format -> a name for its file, and what makes one."""


def made(format: str, seed: int) -> tuple[str, bytes]:
    """A document of a format: its file's name, and its bytes."""
    name, make = MAKERS[format]
    return name, make(random.Random(f"{format}-{seed}"))
