"""Markdown (CommonMark, with GitHub's tables): paragraphs, headings, list items and quotes are segments.

Code, tables, front matter, raw HTML and definitions of links stay. Inline code and the addresses of links stand in the
text, as placeholders (`kauli.models.documents.placeholders`).
"""

import re
from typing import Self

from kauli.models.documents.document import DocumentOptions
from kauli.models.documents.encoded import decoded, lines_of
from kauli.models.documents.plain import Plain

_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})")
_PREFIX = re.compile(r"^\s*(?:(?:>\s?)+|(?:[-*+]|\d{1,9}[.)])\s+(?:\[[ xX]\]\s+)?|#{1,6}\s+)*")
_KEPT = re.compile(
    r"^\s*(?:\||<(?:[a-zA-Z/!?]).*>\s*$|\[[^\]]+\]:\s|(?:[-*_]\s*){3,}$|=+\s*$|-+\s*$|(?:\|?\s*:?-+:?\s*\|)+)"
    r"|^(?: {4}|\t)"
)
_ITEM = re.compile(r"^\s*(?:>\s?|[-*+]\s|\d{1,9}[.)]\s|#{1,6}\s)")
_HEADING_END = re.compile(r"\s+#+\s*$")


class Markdown(Plain):
    """Lines of a paragraph are one segment; its translation is one line."""

    format = "markdown"
    suffixes = (".md", ".markdown")

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for bytes that are no text."""
        text, encoding = decoded(data, name, options.encoding)
        lines = lines_of(text)
        pieces, places, headings = list[str](), list[int](), set[int]()
        at, fence = _front_matter(lines), ""
        kept = "".join(lines[:at])
        while at < len(lines):
            line = lines[at]
            mark = _FENCE.match(line)
            if mark or fence or not line.strip() or _KEPT.match(line) or _is_table(lines, at):
                if mark and (not fence or (mark[1].startswith(fence) and not line.strip().strip(fence[0]))):
                    fence = "" if fence else mark[1]
                kept += line
                at += 1
                continue
            stop = at + 1
            if not line.lstrip().startswith("#"):
                while stop < len(lines) and _goes_on(lines, stop):
                    stop += 1
            found = _PREFIX.match(line)
            assert found is not None  # it matches any line
            body = "".join(lines[at:stop])[found.end() :]
            words = body.rstrip("\r\n")
            if line.lstrip().startswith("#"):
                words = _HEADING_END.sub("", words)
            words = words.rstrip()
            at = stop
            if not re.search(r"[^\W\d_]", words):
                kept += found[0] + body
                continue
            pieces += [kept + found[0], words]
            places.append(len(pieces) - 1)
            if line.lstrip().startswith("#"):
                headings.add(len(places) - 1)
            kept = body[len(words) :]
        document = cls([*pieces, kept], places, encoding, name)
        document.headings = headings
        return document


def _front_matter(lines: list[str]) -> int:
    """The number of lines of YAML at the beginning."""
    if lines and lines[0].strip() == "---":
        return next((at + 1 for at, line in enumerate(lines[1:], 1) if line.strip() in ("---", "...")), 0)
    return 0


def _is_table(lines: list[str], at: int) -> bool:
    """Whether a line belongs to a table: a row of dashes is below it, or it is below one without a blank line."""
    first = at
    while first > 0 and lines[first - 1].strip():
        first -= 1
    ruler = re.compile(r"^\s*\|?(?:\s*:?-+:?\s*\|)+\s*:?-*:?\s*$")
    rulers = [place for place in range(first, min(at + 2, len(lines))) if ruler.match(lines[place])]
    return bool(rulers) and "|" in lines[at]


def _goes_on(lines: list[str], at: int) -> bool:
    """Whether a line continues the paragraph above it."""
    line = lines[at]
    return bool(line.strip()) and not (
        _FENCE.match(line) or _ITEM.match(line) or _KEPT.match(line) or _is_table(lines, at)
    )
