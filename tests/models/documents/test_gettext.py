"""PO catalogues: plural forms, fuzzy drafts, what stays byte for byte; translate-toolkit reads the same."""

from typing import Any

import pytest
from translate.storage.po import pofile

from kauli.models.documents.document import DocumentOptions, Segment
from kauli.models.documents.table import open_document
from kauli.models.errors import UsageError

PO = r"""# A translator's comment
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\n"
"Language: pt_BR\n"
"Plural-Forms: nplurals=3; plural=(n%10==1 ? 0 : n%10<5 ? 1 : 2);\n"

#. for the menu
#: src/main.c:10
msgctxt "menu"
msgid "_Open"
msgstr ""

#, fuzzy, c-format
#| msgid "Old %s"
msgid "New %s\n"
msgstr "Alt %s\n"

#, c-format
msgid "%d file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

msgid ""
"A long one "
"in \"two\" lines"
msgstr "done"

#~ msgid "gone"
#~ msgstr "weg"
"""


def opened(text: str | bytes = PO, **options: Any) -> Any:
    data = text.encode() if isinstance(text, str) else text
    return open_document(data, "app.po", DocumentOptions(**options))


def test_what_a_catalogue_holds() -> None:
    document = opened()
    assert document.languages == (None, "pt-BR")
    assert document.segments == [
        Segment("1:", "_Open", "", "missing", "menu | for the menu"),
        Segment("2:", "New %s\n", "Alt %s\n", "draft"),
        Segment("3:[0]", "%d file"),
        Segment("3:[1]", "%d files", ambiguous=True),  # two forms of one text
        Segment("3:[2]", "%d files", ambiguous=True),  # the header's number of forms
        Segment("4:", 'A long one in "two" lines', "done", "confirmed"),
    ]


@pytest.mark.parametrize("text", [PO, PO.replace("\n", "\r\n"), PO.rstrip("\n"), "\ufeff" + PO])
def test_what_is_not_filled_in_stays_byte_for_byte(text: str) -> None:
    assert opened(text).write() == text.encode()


def test_a_filled_in_draft_is_fuzzy_and_nothing_else_changes() -> None:
    document = opened()
    document.fill("1:", "_Abrir", draft=True, note="look at it")
    for form, text in enumerate(("%d x", "%d y", '%d "z"\n\tw')):
        document.fill(f"3:[{form}]", text, draft=True)
    expected = PO.replace("#. for the menu\n", "# look at it\n#. for the menu\n")
    expected = expected.replace('msgctxt "menu"', '#, fuzzy\nmsgctxt "menu"')
    expected = expected.replace('_Open"\nmsgstr ""', '_Open"\nmsgstr "_Abrir"')
    expected = expected.replace('#, c-format\nmsgid "%d', '#, fuzzy, c-format\nmsgid "%d')
    forms = 'msgstr[0] "%d x"\nmsgstr[1] "%d y"\nmsgstr[2] ""\n"%d \\"z\\"\\n"\n"\\tw"\n'
    expected = expected.replace('msgstr[0] ""\nmsgstr[1] ""\n', forms)
    assert document.write().decode() == expected
    again = opened(document.write())
    assert [one.state for one in again.segments] == ["draft"] * 5 + ["confirmed"]
    assert again.segments == document.segments or [one.target for one in again.segments] == [
        one.target for one in document.segments
    ]


def test_a_confirmed_translation_is_no_longer_fuzzy() -> None:
    document = opened()
    document.fill("2:", "Neu %s\n", draft=False)
    assert '#, c-format\nmsgid "New %s\\n"\nmsgstr "Neu %s\\n"\n' in document.write().decode()
    assert "Old" not in document.write().decode()


def test_translate_toolkit_reads_the_same() -> None:
    document = opened()
    document.fill("1:", "_Abrir", draft=True)
    document.fill("4:", 'b "c"\nd\\n', draft=False)
    theirs = pofile.parsestring(document.write())
    units = [unit for unit in theirs.units if not unit.isheader() and not unit.isobsolete()]
    assert [str(unit.target) for unit in units] == ["_Abrir", "Alt %s\n", "", 'b "c"\nd\\n']
    assert [bool(unit.isfuzzy()) for unit in units] == [True, True, False, False]


def test_other_encodings() -> None:
    text = PO.replace("UTF-8", "ISO-8859-2").replace("done", "hotovo ž")
    document = opened(text.encode("iso-8859-2"))
    assert document.segments[-1].target == "hotovo ž"
    assert document.write() == text.encode("iso-8859-2")
    document.fill("1:", "መኪና", draft=True)
    with pytest.raises(UsageError, match=r"ISO-8859-2 has no 'መ' \(U\+1218\): save it as UTF-8 first"):
        document.write()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('msgid "a"\n', "a message without msgstr: the file is cut off"),
        ('msgstr "a"\n', "line 1: msgstr without msgid"),
        ('msgctxt "c"\nmsgstr "a"\n', "line 2: msgstr without msgid"),
        ('msgid "a"\nmsgstr "b\n', "line 2: this is no line of a PO file|line 2: the quotes of msgstr do not match"),
        ('msgid "a"\nmsgstr[0] "b"\n', r"line 2: msgstr\[0\] in the place of msgstr, as there is no msgid_plural"),
        ('msgid "a"\nmsgid_plural "b"\nmsgstr "c"\n', r"line 3: msgstr in the place of msgstr\[0\]"),
        ("hello\n", "line 1: this is no line of a PO file: hello"),
        ('msgid "a"\nmsgid_plural "b"\nmsgid_plural "c"\n', "line 3: msgid_plural twice"),
        (b'msgid "\xff"\nmsgstr ""\n', "line 1: byte 0xff is no utf-8"),
        ("# only a comment\n", "it holds no message"),
    ],
)
def test_a_broken_file_is_named_by_its_line(text: str | bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(text)


def test_an_unknown_segment() -> None:
    for id in ("0:", "9:", "3:[7]"):
        with pytest.raises(KeyError):
            opened().fill(id, "x", draft=True)


def test_what_is_said_before_an_obsolete_message_stays_there() -> None:
    text = '#, fuzzy\n#~ msgid "Old"\n#~ msgstr "x"\n\nmsgid "New"\nmsgstr "ሀ"\n'
    assert [one.state for one in opened(text).segments] == ["confirmed"]
    assert opened(text).write() == text.encode()


def test_a_message_with_a_form_that_is_a_draft_stays_fuzzy() -> None:
    text = '#, fuzzy\nmsgid "%d file"\nmsgid_plural "%d files"\nmsgstr[0] "%d ሀ"\nmsgstr[1] ""\n'
    document = opened(text)
    document.fill("0:[1]", "%d ለ", draft=False)
    assert document.write().decode().startswith("#, fuzzy\n")
    document.fill("0:[0]", "%d ሀ", draft=False)
    assert "fuzzy" not in document.write().decode()


def test_the_same_text_in_two_contexts_is_ambiguous() -> None:
    text = 'msgctxt "a"\nmsgid "Open"\nmsgstr ""\n\nmsgctxt "b"\nmsgid "Open"\nmsgstr ""\n\nmsgid "Close"\nmsgstr ""\n'
    assert [one.ambiguous for one in opened(text).segments] == [True, True, False]


def test_a_template_becomes_a_catalogue() -> None:
    head = (
        'msgid ""\nmsgstr ""\n"Language: \\n"\n"Content-Type: text/plain; charset=CHARSET\\n"\n'
        '"Plural-Forms: nplurals=INTEGER; plural=EXPRESSION;\\n"\n\n'
    )
    data = (head + 'msgid "Car"\nmsgstr ""\n').encode()
    document = open_document(data, "a.pot", DocumentOptions("en", "pt-BR"))
    assert document.write() == data
    document.fill("1:", "Carro", draft=True)
    written = document.write().decode()
    assert '"Language: pt_BR\\n"\n"Content-Type: text/plain; charset=UTF-8\\n"\n' in written
    assert open_document(written.encode(), "a.po", DocumentOptions()).languages == (None, "pt-BR")
