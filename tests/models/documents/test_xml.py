"""XLIFF and TMX: what is read and written, states, broken XML and bombs; translate-toolkit reads the same."""

import pytest
from translate.storage.tmx import tmxfile  # type: ignore[import-untyped]
from translate.storage.xliff import xlifffile  # type: ignore[import-untyped]

from kauli.models.documents.document import DocumentOptions, Segment
from kauli.models.documents.table import open_document
from kauli.models.errors import UsageError

XLIFF = """<?xml version="1.0" encoding="UTF-8"?>
<!-- kept -->
<xliff version="1.2" xmlns="urn:oasis:names:tc:xliff:document:1.2">
 <file original="a.c" source-language="en-US" target-language="am" datatype="c"><body>
  <trans-unit id="1" approved="no">
   <source>Open &amp; save</source>
   <note>menu</note>
  </trans-unit>
  <trans-unit id="2"><source>Click <g id="1">here</g></source><target state="new">x</target></trans-unit>
  <trans-unit id="3"><source>Done</source><target state="final">ሆነ</target></trans-unit>
  <trans-unit id="4" translate="no"><source>KAULI</source></trans-unit>
  <trans-unit id="5"><source>Last</source><target/></trans-unit>
 </body></file>
</xliff>
"""


def opened(text: str, name: str = "a.xlf", **options: str) -> object:
    return open_document(text.encode(), name, DocumentOptions(**options))  # type: ignore[arg-type]


def test_xliff_1_2() -> None:
    document = open_document(XLIFF.encode(), "a.xlf", DocumentOptions())
    assert document.languages == ("en-US", "am")
    assert list(document.segments) == [
        Segment("0:1", "Open & save", "", "missing", "menu"),
        Segment("1:2", 'Click <g id="1">here</g>', "x", "draft"),
        Segment("2:3", "Done", "ሆነ", "confirmed"),
        Segment("4:5", "Last"),
    ]
    document.fill("0:1", "ክፈት & <ይያዙ>", draft=True)
    document.fill("1:2", '<g id="1">እዚህ</g> ይጫኑ', draft=True)
    document.fill("4:5", "ለ", draft=False)
    expected = XLIFF.replace(
        "   <note>", '   <target state="needs-review-translation">ክፈት &amp; &lt;ይያዙ&gt;</target>\n   <note>'
    )
    expected = expected.replace(
        '<target state="new">x', '<target state="needs-review-translation"><g id="1">እዚህ</g> ይጫኑ'
    )
    expected = expected.replace("<target/>", '<target state="translated">ለ</target>')
    assert document.write().decode() == expected
    units = [unit for unit in xlifffile.parsestring(document.write()).units if unit.istranslatable()]
    assert [str(unit.target) for unit in units][:1] == ["ክፈት & <ይያዙ>"]


def test_markup_that_a_draft_broke_is_written_as_text() -> None:
    document = open_document(XLIFF.encode(), "a.xlf", DocumentOptions())
    document.fill("1:2", '<g id="1">እዚህ', draft=True)
    assert '&lt;g id="1"&gt;እዚህ</target>' in document.write().decode()
    open_document(document.write(), "a.xlf", DocumentOptions())


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="*all*" adminlang="en"/><body>
<tu><tuv xml:lang="en"><seg>Open &lt;b&gt;</seg></tuv><tuv xml:lang="am"><seg>ክፈት</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Close</seg></tuv></tu>
</body></tmx>
"""


def test_tmx() -> None:
    document = open_document(TMX.encode(), "a.tmx", DocumentOptions())
    assert document.languages == ("am", "en")  # of two languages both are taken; which is the source is for the user
    document = open_document(TMX.encode(), "a.tmx", DocumentOptions("en", "am"))
    assert list(document.segments) == [Segment("0", "Open <b>", "ክፈት", "confirmed"), Segment("1", "Close")]
    document.fill("1", "ዝጋ", draft=True)
    new = '<tuv xml:lang="am"><prop type="x-kauli">draft</prop><seg>ዝጋ</seg></tuv>'
    assert document.write().decode() == TMX.replace("Close</seg></tuv>", f"Close</seg></tuv>{new}")
    again = open_document(document.write(), "a.tmx", DocumentOptions("en-GB", "am-ET"))
    assert [one.state for one in again.segments] == ["confirmed", "draft"]
    theirs = tmxfile.parsestring(document.write(), "en", "am")
    assert [theirs.findunit("Close").target] == ["ዝጋ"]
    with pytest.raises(UsageError, match="no text in 'fr': it has am, en"):
        open_document(TMX.encode(), "a.tmx", DocumentOptions("fr", "am"))


BOMB = '<?xml version="1.0"?>\n<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]>\n<{0}>&b;</{0}>'
FILE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><{0}>&a;</{0}>'


@pytest.mark.parametrize(("name", "root"), [("a.xlf", "xliff"), ("a.tmx", "tmx")])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "it declares entities"),
        (FILE, "it declares entities"),
        ("<{0}><a></{0}>", "line 1: broken XML: mismatched tag"),
        ("<{0}>", "broken XML: no element found"),
        ("<html/>", "its root element is <html>"),
        ("", "broken XML: no element found"),
        ("<{0}>&x;</{0}>", "broken XML: undefined entity"),
    ],
)
def test_broken_xml_and_bombs(name: str, root: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        opened(text.replace("{0}", root), name)
    assert str(error.value).startswith(name)
