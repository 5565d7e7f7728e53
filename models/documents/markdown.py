r"""Markdown: CommonMark (https://spec.commonmark.org/0.31.2/), with GitHub's tables, footnotes, task lists and alerts.

A segment is the text of a paragraph, heading or table cell, also in lists, quotes and footnotes, as one line. Code,
`$$` blocks, front matter, blocks of HTML, thematic breaks and definitions of links stay. Inline code and the addresses
of links stand in the text, as placeholders (`kauli.models.documents.placeholders`), and so does a hard line break, as
`<br/>`: it is written as it was. What would begin another block gets a backslash, as `\# one`, and is shown without it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import ClassVar, Literal, Self

from markdown_it import MarkdownIt
from markdown_it.common.utils import mdTrim
from markdown_it.rules_block import StateBlock
from markdown_it.token import Token

from kauli.models.documents.document import Document, DocumentOptions, Segment
from kauli.models.documents.encoded import Encoding, decoded, lines_of

_DEEPEST = 50
"""Blocks within blocks; what is nested more stays. Each costs the time to read its lines once more."""
_BREAK = "<br/>"
_LETTER = re.compile(r"[^\W\d_]")
_LINE_END = re.compile(r"(?<![ \t])[ \t]*[\r\n][ \t\r\n]*")
_FOOTNOTE = re.compile(r"\[\^[^\s\[\]]+\]:[ \t]*")
_CLOSING_HASHES = re.compile(r"(^|[ \t])(#+)$")
_RULER = re.compile(r"[-:|][-:| \t]*$")
_BLOCK_SIGN = re.compile(r"[#>*+\-_=`~<\[|:$0-9]")
_NUMBER = re.compile(r"[0-9]{0,9}")
_ESCAPED_SIGN = re.compile(r"([0-9]{0,9})\\")
_PIPE = re.compile(r"(?<!\\)\|")
_ANY_PIPE = re.compile(r"\\?\|")
_PIPE_ENTITY = "&#124;"
_NEIGHBOURS = (("- ", ""), ("> ", "\n> $$"), ("x\n", ""))
"""(before, behind) a line: one that stays words in all these does so in every paragraph."""
_DEFINITION = ("[x]: x\n", "")


@dataclass(frozen=True)
class _Place:
    """Words in a document."""

    begin: int
    end: int
    kind: Literal["paragraph", "title", "cell"]
    """A title is one with `#`; one that is underlined is read as a paragraph is."""
    lines: tuple[str, ...]
    """The words, parted at hard line breaks."""
    breaks: tuple[tuple[int, int], ...] = ()
    """Begin and end of what parts them: the line's end and the marks of quotes and lists before the next words."""
    heading: bool = False
    below: str = ""
    """The line below, where it could make words with a pipe the header of a table."""
    defined: bool = False
    """Whether the line above defines a link: words in quotes would become its title."""
    first: bool = True
    """Whether nothing stands before a cell in its row."""

    def shown(self) -> str:
        """The words as they are translated."""
        return _BREAK.join(map(self._plain, self.lines))

    def written(self, words: str, text: str) -> str:
        """The reverse; `text` is the document."""
        words = _LINE_END.sub(" ", words).strip(" \t")
        if not self.breaks:
            return self._protected(words)
        line, *rest = words.split(_BREAK)
        out, count = "", 0
        for one in rest:
            if line.strip(" \t") and one.strip(" \t"):
                begin, end = self.breaks[min(count, len(self.breaks) - 1)]
                out += self._protected(line.strip(" \t")) + text[begin:end]
                line, count = one, count + 1
            else:  # an empty line would end the paragraph
                line += _BREAK + one
        return out + self._protected(line.strip(" \t"))

    def _protected(self, line: str) -> str:
        """The line with backslashes where it would not stay the words of its block."""
        if self.kind == "title":
            line = _CLOSING_HASHES.sub(r"\1\\\2", line)
        elif self.first and not _stands(line, self.defined):
            found = _NUMBER.match(line)
            at = found.end() if found and line[found.end() : found.end() + 1] in (".", ")") else 0
            line = f"{line[:at]}\\{line[at:]}"
        if self.kind == "cell":
            line = line.replace("|", r"\|")
            return line + " " * (len(line) - len(line.rstrip("\\")) > 0)  # else it would escape the pipe behind it
        return _ANY_PIPE.sub(_PIPE_ENTITY, line) if self._is_table(line) else line

    def _is_table(self, line: str) -> bool:
        if not self.below or "|" not in line:
            return False
        # The parser takes the marks of lists and titles before the words for a part of the header
        headers = [f"{before}{line}\n" for before in ("", "x ")]
        return any(one.kind == "cell" for header in headers for one in _Blocks([header, f"{self.below}\n"]).places)

    def _plain(self, line: str) -> str:
        """The line without the backslashes of `_protected`; as it is where it has others."""
        plain = line.replace(r"\|", "|") if self.kind == "cell" else line
        if self.below:
            plain = plain.replace(_PIPE_ENTITY, "|")
        if self.kind == "title":
            plain = re.sub(r"(^|[ \t])\\(#+)$", r"\1\2", plain)
        elif self.first:
            plain = _ESCAPED_SIGN.sub(r"\1", plain, count=1) if _ESCAPED_SIGN.match(plain) else plain
        if self.kind == "cell" and self._protected(plain) != line:
            return line.replace(r"\|", "|")
        return plain if plain == line or self._protected(plain) == line else line


class Markdown(Document):
    """A translation takes the place of the words, as one line."""

    format = "markdown"
    suffixes: ClassVar[tuple[str, ...]] = (".md", ".markdown")

    def __init__(self, text: str, places: Sequence[_Place], encoding: Encoding, name: str) -> None:
        self._text, self._places, self._encoding, self._name = text, places, encoding, name
        self._segments = [Segment(str(at), one.shown(), heading=one.heading) for at, one in enumerate(places)]
        self._filled: dict[int, str] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for bytes that are no text."""
        text, encoding = decoded(data, name, options.encoding)
        lines = lines_of(text)
        kept = _front_matter(lines)
        places = _Blocks(lines[kept:], sum(map(len, lines[:kept]))).places
        return cls(text, [one for one in places if any(map(_LETTER.search, one.lines))], encoding, name)

    @property
    def segments(self) -> Sequence[Segment]:
        """The texts of its blocks."""
        return [
            replace(one, target=self._filled[number], state="draft") if number in self._filled else one
            for number, one in enumerate(self._segments)
        ]

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The translation takes the text's place."""
        if not id.isdecimal() or int(id) >= len(self._places):
            raise KeyError(id)
        self._filled[int(id)] = target

    def write(self) -> bytes:
        """The text with what was filled in."""
        out, at = list[str](), 0
        for number, target in sorted(self._filled.items()):
            place = self._places[number]
            out += [self._text[at : place.begin], place.written(target, self._text)]
            at = place.end
        return self._encoding.encode("".join([*out, self._text[at:]]), self._name)


class _Blocks(StateBlock):
    """The blocks of a document. The parser's tokens tell only lines; its state tells where in a line the words begin.

    `push` is where both are known: the state forgets the marks of a quote or list when it leaves it.
    """

    def __init__(self, lines: Sequence[str], begin: int = 0) -> None:
        """`lines` have their ends; `begin` is the place of the first in the document."""
        bodies = [line.rstrip("\r\n") for line in lines]
        self._shift, at = list[int](), begin
        for line, body in zip(lines, bodies, strict=True):
            self._shift.append(at)
            at += len(line) - len(body) - 1
        parser = _parser()
        super().__init__("".join(f"{body}\n" for body in bodies), parser, {}, [])
        self.places: list[_Place] = []
        self._definition_end = -1
        parser.block.tokenize(self, 0, self.lineMax)

    def push(self, ttype: str, tag: str, nesting: Literal[-1, 0, 1]) -> Token:
        """Note the words of a block that ends."""
        token = super().push(ttype, tag, nesting)
        if ttype == "definition":
            self._definition_end = self.line
        elif ttype in ("paragraph_close", "heading_close"):
            self._words(self.tokens[-3], self.tokens[-2])
        elif ttype == "tr_close":
            self._row()
        return token

    def _span(self, line: int) -> tuple[int, int]:
        """Begin and end of a line's words in `src`."""
        begin, end = self.bMarks[line] + self.tShift[line], self.eMarks[line]
        body = self.src[begin:end]
        return end - len(body.lstrip(" \t")), begin + len(body.rstrip(" \t"))

    def _words(self, opened: Token, inline: Token) -> None:
        """The words of a paragraph or heading."""
        assert inline.map is not None  # both have one
        first, last = inline.map
        defined = first == self._definition_end
        if opened.markup.startswith("#"):
            begin = self.src.find(inline.content, self._span(first)[0] + len(opened.markup)) + self._shift[first]
            end = begin + len(inline.content)
            below = self._ruler(last)
            self.places.append(_Place(begin, end, "title", (inline.content,), heading=True, below=below))
            return
        spans = [self._span(line) for line in range(first, last)]
        lines, breaks, words = list[str](), list[tuple[int, int]](), list[str]()
        for number, (begin, end) in enumerate(spans):
            line, full = self.src[begin:end], self.src[begin : self.eMarks[first + number]]
            slash = (len(full) - len(full.rstrip("\\"))) % 2
            if number + 1 == len(spans) or not (slash or full.endswith("  ")):
                words.append(line)
                continue
            line = line[: len(line) - slash].rstrip(" \t")
            lines.append(" ".join([*words, line]).rstrip(" "))
            words = []
            after = spans[number + 1][0] + self._shift[first + number + 1]
            breaks.append((begin + len(line) + self._shift[first + number], after))
        heading = opened.type == "heading_open"
        place = _Place(
            spans[0][0] + self._shift[first], spans[-1][1] + self._shift[last - 1], "paragraph",
            (*lines, " ".join(words)), tuple(breaks), heading, self._ruler(last), defined,
        )  # fmt: skip
        self.places.append(place)

    def _ruler(self, line: int) -> str:
        """A line that is one below the header of a table, also outside of this quote; "" for another."""
        begin = self.eMarks[line - 1] + 1
        words = self.src[begin : self.src.find("\n", begin)].strip("> \t") if begin < len(self.src) else ""
        return words if _RULER.match(words) else ""

    def _row(self) -> None:
        """The cells of a table's row; it may have more than its header, which are not shown, or less."""
        columns, at = 0, len(self.tokens) - 1
        while self.tokens[at].type != "tr_open":
            columns += self.tokens[at].type == "inline"
            at -= 1
        found = self.tokens[at].map
        assert found is not None  # rows have one
        begin, end = self._span(found[0])
        row = mdTrim(self.src[begin:end])
        begin = self.src.index(row, begin)
        marks = [match.start() for match in _PIPE.finditer(row)]
        if not marks and self.tokens[at - 1].type == "thead_open":
            return  # its only pipe is one of the words: another text would have none
        edges = [-1, *marks, len(row)]
        cells = [(left + 1, right) for left, right in pairwise(edges)]
        cells = cells[row.startswith("|") :]
        for left, right in cells[:columns]:
            words = row[left:right].strip(" \t")
            start = left + (len(row[left:right]) - len(row[left:right].lstrip(" \t")) if words else 0)
            place = begin + start + self._shift[found[0]]
            self.places.append(_Place(place, place + len(words), "cell", (words,), first=left == 0))


@cache
def _parser() -> MarkdownIt:
    options = {"tasklists": True, "alerts": True, "inline_definitions": True, "maxNesting": _DEEPEST}
    parser = MarkdownIt("commonmark", options).enable("table")
    parser.block.ruler.before("fence", "math", _math, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    parser.block.ruler.before("reference", "footnote", _footnote, {"alt": ["paragraph", "reference"]})
    return parser


def _math(state: StateBlock, startLine: int, endLine: int, silent: bool) -> bool:
    """A rule: lines from one that begins with `$$` to one that ends with it, without an empty line between them."""
    begin = state.bMarks[startLine] + state.tShift[startLine]
    if not state.src.startswith("$$", begin) or state.is_code_block(startLine):
        return False
    rest = state.src[begin + 2 : state.eMarks[startLine]].rstrip(" \t")
    last = startLine
    if "$$" in rest:
        if rest.index("$$") + 2 != len(rest):
            return False  # a formula in a paragraph
    else:
        unclosed: dict[tuple[int, int], int] = state.env.setdefault("unclosed", {})
        where = (state.blkIndent, endLine)
        if startLine < unclosed.get(where, -1):
            return False
        while not state.src[: state.eMarks[last]].endswith("$$") or last == startLine:
            last += 1
            if last >= endLine or state.isEmpty(last) or state.sCount[last] < state.blkIndent:
                unclosed[where] = last
                return False
    if not silent:
        state.line = last + 1
    return True


def _footnote(state: StateBlock, startLine: int, endLine: int, silent: bool) -> bool:
    """A rule: `[^name]: text`, and the blocks below it that are indented by four."""
    begin = state.bMarks[startLine] + state.tShift[startLine]
    mark = _FOOTNOTE.match(state.src, begin, state.eMarks[startLine])
    if mark is None or state.is_code_block(startLine):
        return False
    if silent:
        return True
    kept = state.bMarks[startLine], state.tShift[startLine], state.sCount[startLine], state.parentType
    state.blkIndent += 4
    state.bMarks[startLine], state.tShift[startLine], state.sCount[startLine] = mark.end(), 0, state.blkIndent
    state.parentType = "footnote"
    state.push("footnote_open", "", 1)
    state.md.block.tokenize(state, startLine, endLine)
    state.push("footnote_close", "", -1)
    state.blkIndent -= 4
    state.bMarks[startLine], state.tShift[startLine], state.sCount[startLine], state.parentType = kept
    return True


def _front_matter(lines: Sequence[str]) -> int:
    """The number of lines of YAML or TOML at the beginning; below a thematic break there is an empty line."""
    ends = {"---": ("---", "..."), "+++": ("+++",)}.get(lines[0].rstrip() if lines else "")
    if ends is None or not "".join(lines[1:2]).strip():
        return 0
    return next((at + 1 for at, line in enumerate(lines[1:], 1) if line.rstrip() in ends), 0)


def _stands(line: str, defined: bool) -> bool:
    """Whether a line of a paragraph is one for the parser; `defined`: also below the definition of a link."""
    if not defined and not _BLOCK_SIGN.match(line):
        return True
    if _RULER.match(line):
        return False
    for before, behind in (*_NEIGHBOURS, *[_DEFINITION] * defined):
        text = f"{before}{line}{behind}\n"
        found = _Blocks(lines_of(text)).places
        begin = 0 if before == "x\n" else len(before)
        if [(one.begin, one.end, one.kind, one.heading) for one in found] != [
            (begin, len(text) - 1, "paragraph", False)
        ]:
            return False
    return True
