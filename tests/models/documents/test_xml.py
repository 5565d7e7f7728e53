"""XLIFF and TMX: what is read and written, states, broken XML and bombs; translate-toolkit reads the same."""

import re

import pytest
from translate.storage.tmx import tmxfile  # type: ignore[import-untyped]
from translate.storage.xliff import xlifffile  # type: ignore[import-untyped]

from kauli.models.documents.document import Document, DocumentOptions, Segment
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


def opened(text: str, name: str = "a.xlf", **options: str) -> Document:
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


def test_what_is_inherited_and_where_targets_go() -> None:
    text = XLIFF.replace(
        "</body>",
        """<group translate="no"><trans-unit id="6"><source>Stays</source></trans-unit>
  <trans-unit id="7" translate="yes" maxwidth="9" size-unit="char"><source>Goes</source><seg-source>Goes</seg-source>
  </trans-unit></group></body>""",
    )
    document = opened(text)
    last = document.segments[-1]
    assert (last.source, last.limit) == ("Goes", 9)
    assert "Stays" not in [one.source for one in document.segments]
    document.fill(last.id, "ሂድ", draft=True)
    assert re.search(r'</seg-source>\s*<target state="needs-review-translation">ሂድ</target>', document.write().decode())
    other = '<file source-language="en" target-language="sw"><body/></file></xliff>'
    with pytest.raises(UsageError, match=r"several languages \(en to sw, en-US to am\): write a file for each pair"):
        opened(XLIFF.replace("</xliff>", other))


def test_xliff_2_says_the_language_of_its_targets() -> None:
    text = (
        '<xliff version="2.0" srcLang="en"><file id="f"><unit id="u" translate="no"><segment><source>Stays</source>'
        '</segment></unit><unit id="v"><segment><source>Car</source></segment></unit></file></xliff>'
    )
    document = opened(text, target="am")
    (only,) = document.segments
    document.fill(only.id, "መኪና", draft=True)
    assert document.write().decode().startswith('<xliff version="2.0" srcLang="en" trgLang="am">')


def test_a_memory_keeps_what_else_its_units_say() -> None:
    text = (
        '<tmx version="1.4"><header srclang="en"/><body><tu><tuv xml:lang="en"><seg>Car</seg></tuv>'
        '<tuv xml:lang="am"><prop type="x-who">Abebe</prop>\n <prop type="x-kauli">draft</prop><seg>x</seg></tuv></tu>'
        '<tu><tuv xml:lang="en"><seg>&#66;us</seg></tuv><tuv xml:lang="am"/></tu></body></tmx>'
    )
    document = opened(text, "a.tmx", source="en", target="am")
    assert [(one.source, one.state) for one in document.segments] == [("Car", "draft"), ("Bus", "missing")]
    document.fill("0", "መኪና", draft=False)
    document.fill("1", "አውቶቡስ", draft=True)
    written = document.write().decode()
    assert '<prop type="x-who">Abebe</prop>\n <seg>መኪና</seg></tuv>' in written
    assert '<tuv xml:lang="am"><prop type="x-kauli">draft</prop><seg>አውቶቡስ</seg></tuv></tu></body>' in written


def test_xml_writes_what_its_encoding_lacks_as_references() -> None:
    text = XLIFF.replace("UTF-8", "ISO-8859-1").replace("ሆነ", "fait")
    document = open_document(text.encode("latin-1"), "a.xlf", DocumentOptions())
    document.fill("4:5", "ሀ\x08", draft=True)  # XML holds no control characters
    assert b"&#4608;</target>" in document.write()


def test_what_a_text_of_xml_stands_for() -> None:
    document = opened(XLIFF.replace("Done", "It&#8217;s <![CDATA[<b>]]>"))
    assert document.segments[2].source == "It\u2019s <b>"


def test_deep_xml_is_read() -> None:
    deep = "<group>" * 20_000 + '<trans-unit id="9"><source>Deep</source></trans-unit>' + "</group>" * 20_000
    assert opened(XLIFF.replace("</body>", deep + "</body>")).segments[-1].source == "Deep"
