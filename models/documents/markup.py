"""XML documents whose bytes stay: the places of elements, and edits that splice new text in between.

Entities that a document declares are refused (they can be bombs, or read files); none is ever expanded.
"""

import re
from dataclasses import dataclass, field
from typing import Self
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from kauli.models.documents.encoded import Encoding, decoded
from kauli.models.errors import UsageError

_TAG_END = re.compile(rb"""(?:[^>"']|"[^"]*"|'[^']*')*>""")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


@dataclass
class Element:
    """An element, and its places in the document's UTF-8 bytes."""

    name: str
    """Without its namespace."""
    attributes: dict[str, str]
    begin: int
    """Of its start tag."""
    inner: tuple[int, int] = (0, 0)
    """Of its content; empty for a tag that closes itself."""
    end: int = 0
    closed: bool = False
    """Whether its start tag closes itself."""
    parent: "Element | None" = None
    children: list["Element"] = field(default_factory=list)

    def all(self, *names: str) -> list["Element"]:
        """The elements of these names below it, in their order."""
        found, left = [], list(reversed(self.children))
        while left:  # not by recursion: a file may nest thousands
            one = left.pop()
            found += [one] * (one.name in names)
            left += reversed(one.children)
        return found

    def first(self, name: str) -> "Element | None":
        """The first child of a name."""
        return next((one for one in self.children if one.name == name), None)


class Markup:
    """An XML document and the edits to it."""

    def __init__(self, data: bytes, root: Element, encoding: Encoding, name: str) -> None:
        self.data, self.root, self._form, self._name = data, root, encoding, name

    @classmethod
    def read(cls, data: bytes, name: str, root: str, encoding: str | None = None) -> Self:
        """Raises UsageError for broken XML, for declared entities, and for another root element than `root`."""
        declared = re.match(rb"\s*<\?xml[^>]*encoding=[\"']([\w.:-]+)", data[:200])
        text, found = decoded(data, name, encoding or (declared[1].decode() if declared else None))
        content = text.encode()
        document = _parsed(content, name)
        if document.name != root:
            raise UsageError(f"{name}: its root element is <{document.name}>, not <{root}>")
        return cls(content, document, found, name)

    def text(self, element: Element) -> str:
        """What an element holds: plain text, or markup where it has elements inside."""
        inner = self.data[slice(*element.inner)].decode()
        return inner if element.children else _characters(inner)

    def spliced(self, edits: list[tuple[int, int, str]]) -> bytes:
        """The document with the bytes of each (begin, end) replaced by a text."""
        out, at = list[bytes](), 0
        for begin, end, text in sorted(edits, key=lambda edit: edit[:2]):
            out += [self.data[at:begin], text.encode()]
            at = end
        return self._form.encode(b"".join([*out, self.data[at:]]).decode(), self._name, "xmlcharrefreplace")

    def indent(self, element: Element) -> str:
        """The line end and the blanks before an element; "" where something else is before it."""
        line = self.data.rfind(b"\n", 0, element.begin)
        found = re.fullmatch(rb"\r?\n[ \t]*", self.data[line - (self.data[line - 1 : line] == b"\r") : element.begin])
        return found[0].decode() if found else ""

    def start_tag(self, element: Element, **changes: str | None) -> tuple[int, int, str]:
        """The edit that gives an element's start tag other attributes; None takes one off."""
        end = element.begin + _end_of_tag(self.data, element.begin)
        tag = self.data[element.begin : end].decode()
        for key, value in changes.items():
            new = "" if value is None else f" {key}={quoteattr(value)}"
            there = re.search(rf"""\s{re.escape(key)}\s*=\s*("[^"]*"|'[^']*')""", tag) or re.search(r"\s*(?=/?>$)", tag)
            assert there is not None  # each tag ends
            tag = tag[: there.start()] + new + tag[there.end() :]
        return element.begin, end, tag


def written(text: str, *, markup: bool) -> str:
    """A text as the content of an element; `markup`: elements in it are kept where they are well-formed.

    Control characters, which XML cannot hold, are left out.
    """
    text = _CONTROL.sub("", text)
    if markup:
        try:
            _parsed(f"<r>{text}</r>".encode(), "")
        except UsageError:
            return escape(text)
        return text
    return escape(text)


def _characters(inner: str) -> str:
    """Well-formed content without elements as the text that it stands for."""
    if "&" not in inner and "<" not in inner:
        return inner
    found = list[str]()
    parser = expat.ParserCreate("utf-8")
    parser.CharacterDataHandler = found.append
    parser.Parse(f"<r>{inner}</r>".encode(), True)
    return "".join(found)


def _end_of_tag(data: bytes, begin: int) -> int:
    found = _TAG_END.match(data, begin)
    return (found.end() if found else len(data)) - begin


def _parsed(content: bytes, name: str) -> Element:
    parser = expat.ParserCreate("utf-8")
    top = Element("", {}, 0)
    open_ones = [top]

    def refuse(*_: object) -> None:
        line = parser.CurrentLineNumber
        raise UsageError(f"{name} line {line}: it declares entities, which are not read: take them out of its DOCTYPE")

    def start(tag: str, attributes: dict[str, str]) -> None:
        begin = parser.CurrentByteIndex
        end = begin + _end_of_tag(content, begin)
        element = Element(tag.rpartition(":")[2], attributes, begin, (end, end), end, parent=open_ones[-1])
        element.closed = content[end - 2 : end] == b"/>"
        open_ones[-1].children.append(element)
        open_ones.append(element)

    def stop(tag: str) -> None:
        element = open_ones.pop()
        if not element.closed:
            at = parser.CurrentByteIndex
            element.inner = (element.inner[0], at)
            element.end = at + _end_of_tag(content, at)

    parser.StartElementHandler, parser.EndElementHandler = start, stop
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise UsageError(f"{name} line {error.lineno}: broken XML: {expat.ErrorString(error.code)}") from None
    return top.children[0]
