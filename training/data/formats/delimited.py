"""CSV and TSV with a header line; images and audio are paths.

Two things are found out, since files of this kind don't tell: the delimiter, by the header line; and what quotes mean.
In a record whose fields all are quoted as RFC 4180 has it, or hold no quote, they enclose a field; so do those with
`\\"` within. Any other quote is part of the text: exports of Common Voice, FLEURS and Tatoeba quote nothing.
"""

import re
from collections import deque
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from kauli.training.data.formats.text import Line, read_lines
from kauli.training.data.options import DataOptions

_DELIMITERS = "\t,;|"
_MOST_CHARACTERS = 1 << 24  # of a quoted field over several lines; more is a quote that nothing closes
_NEEDS_QUOTES = re.compile(r'[\t,;|"\r\n]')
_COMMON_VOICE = ({"path", "sentence"}, {"audio_file", "transcription"})  # scripted, spontaneous
_FLEURS = ["sentence_id", "file_name", "raw_transcription", "transcription", "phonemes", "num_samples", "gender"]
_FLEURS_ROW = re.compile(r"\d+\t[^\t]+\.wav\t[^\t]*\t[^\t]*\t[^\t]*\t\d+\t(MALE|FEMALE|OTHER)\s*", re.IGNORECASE)


class _Lines:
    """Lines of a file, some of which can be looked at before they are taken."""

    def __init__(self, file: Path, options: DataOptions) -> None:
        self._source = read_lines(file, options)
        self._ahead: deque[Line] = deque()

    def look(self, distance: int = 0) -> Line | None:
        """The line that is `distance` lines behind the next one; None after the end."""
        while len(self._ahead) <= distance:
            line = next(self._source, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[distance]

    def next_text(self) -> str:
        """The text of the next line; empty after the end."""
        line = self.look()
        return line[1] if line else ""

    def take(self) -> None:
        """Go on to the line behind the next one."""
        if self.look() is not None:
            self._ahead.popleft()


def read_delimited(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`. Empty lines are skipped."""
    lines = _Lines(file, options)
    while (first := lines.look()) is not None and first[2] is None and not first[1].strip():
        lines.take()
    if first is not None and (told := re.fullmatch(r"sep=(.)\s*", first[1])):  # to Excel
        options = options if options.delimiter else options.model_copy(update={"delimiter": told[1]})
        lines.take()
        first = lines.look()
    if first is None:
        return
    if first[2] is not None:
        yield f"line {first[0]}", first[2]
        return
    if "\0" in first[1]:
        yield f"line {first[0]}", "no text file: its header holds NUL characters"
        return
    tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
    delimiter = options.delimiter or _delimiter(first[1], "\t" if tabs else ",")
    quoted = '"' in first[1] and _quoted(lines, delimiter, 0)
    fleurs = delimiter == "\t" and _FLEURS_ROW.fullmatch(first[1])
    header = _FLEURS if fleurs else _names(quoted[0] if quoted else _split(first[1], delimiter))
    for _ in range(0 if fleurs else quoted[1] if quoted else 1):
        lines.take()
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        yield f"line {first[0]}", f"the header has the column '{repeated[0]}' twice: rename one, or add a header line"
        return
    literal = delimiter == "\t" and not quoted
    unquoted = any(
        {name.lower() for name in header} >= names for names in _COMMON_VOICE
    )  # at once, since its files are large
    literal = literal and (unquoted or _quotes_nothing(file, options, header))
    while (line := lines.look()) is not None:
        number, text, fault = line
        if fault is None and text.strip("\r\n"):
            yield f"line {number}", _row(lines, delimiter, header, literal, bool(quoted))
            continue
        lines.take()
        if fault is not None:
            yield f"line {number}", fault


def _row(lines: _Lines, delimiter: str, header: list[str], literal: bool, all_quoted: bool) -> dict[str, Any] | str:
    """The values of the next record, which is taken, or what is wrong with it.

    In a `literal` file quotes are text; where they are around the header, too, they enclose fields for sure.
    """
    text, count = lines.next_text(), 1
    loose = '"' in text and not literal
    if loose and (found := _quoted(lines, delimiter, 0 if all_quoted else len(header))):
        loose, fields, count = False, found[0], found[1]
    else:
        fields = _loose(text, delimiter) if loose else [_enclosed(field) for field in _split(text, delimiter)]
    for _ in range(count):
        lines.take()
    fields = _filled(fields, len(header))
    if loose and len(fields) != len(header):
        return f"its quotes don't match: {len(fields)} fields, and the header has {len(header)} columns"
    if len(fields) > len(header):
        return f"more fields than the header has columns ({', '.join(header)})"
    return {name: value or None for name, value in zip(header, fields, strict=False)}


def _filled(fields: list[str], count: int) -> list[str]:
    """The fields without empty ones behind the last column, as of a trailing comma."""
    while len(fields) > count and not fields[-1].strip():
        fields = fields[:-1]
    return fields


def _delimiter(header: str, usual: str) -> str:
    """The one that is most often in the header; `usual` where it is there, or none is."""
    bare = re.sub(r'"[^"]*"', "", header)
    return usual if usual in bare else max((usual, *_DELIMITERS), key=bare.count)


def _names(fields: list[str]) -> list[str]:
    """The names in a header; a column without one is called by its number."""
    return [name.strip() or f"(column {number})" for number, name in enumerate(_filled(fields, 0) or fields, start=1)]


def _split(text: str, delimiter: str) -> list[str]:
    return text.rstrip("\r\n").split(delimiter)


def _enclosed(text: str) -> str:
    """A field without the quotes around it, if those within are doubled: nobody writes a text so."""
    within = text[1:-1].replace('""', "")
    doubled = len(within) < len(text) - 2 and '"' not in within and text.startswith('"') and text.endswith('"')
    return _unquoted(text[1:-1], escaped=False) if doubled else text


def _loose(text: str, delimiter: str) -> list[str]:
    """Fields of one line in which quotes are used at random: those around a whole field enclose it, others are text."""
    mark = re.escape(delimiter)
    found = re.findall(rf'(?:^|{mark})(?:"((?:[^"]|"")*+)"(?={mark}|$)|([^{mark}]*+))', text.rstrip("\r\n"))
    return [within.replace('""', '"') or bare for within, bare in found]


@cache
def _patterns(delimiter: str, escaped: bool) -> tuple["re.Pattern[str]", "re.Pattern[str]", "re.Pattern[str]"]:
    """A whole record, one of its fields, and a quote that counts; with `escaped`, a backslash takes a quote's force."""
    within = r'(?:[^"\\]|\\.|"")*+' if escaped else r'(?:[^"]|"")*+'
    one = rf' *+"({within})" *+|([^"\r\n{re.escape(delimiter)}]*+)'
    plain = re.sub(r"\((?!\?)", "(?:", one)
    record = rf"(?:{plain})(?:{re.escape(delimiter)}(?:{plain}))*+[\r\n]*"
    field = rf"(?:^|{re.escape(delimiter)})(?:{one})"
    quote = r'(?<!\\)(?:\\\\)*"' if escaped else '"'
    return re.compile(record, re.DOTALL), re.compile(field, re.DOTALL), re.compile(quote)


def _quoted(lines: _Lines, delimiter: str, num_columns: int) -> tuple[list[str], int, list[str]] | None:
    """The next record as RFC 4180 has it: its fields, its number of lines, and the fields in quotes.

    None if it isn't so, or if the lines of a quoted field are whole rows of `num_columns` themselves: two stray quotes
    enclose them.
    """
    first = lines.next_text()
    for escaped in (False, True) if '\\"' in first else (False,):
        record, field, quote = _patterns(delimiter, escaped)
        parts = [first]
        odd, size = len(quote.findall(first)) % 2 == 1, 0
        while odd and size < _MOST_CHARACTERS and (line := lines.look(len(parts))) and line[2] is None:
            parts.append(line[1])
            odd, size = odd ^ (len(quote.findall(line[1])) % 2 == 1), size + len(line[1])
        rows = delimiter == "\t" or num_columns > 2
        if odd or (rows and len(parts) > 1 and all(part.count(delimiter) + 1 == num_columns for part in parts)):
            continue
        text = "".join(parts)
        if record.fullmatch(text):
            found = [match.groups() for match in field.finditer(text.rstrip("\r\n"))]
            fields = [bare if within is None else _unquoted(within, escaped) for within, bare in found]
            return fields, len(parts), [text for text, (_, bare) in zip(fields, found, strict=True) if bare is None]
    return None


def _unquoted(text: str, escaped: bool) -> str:
    text = text.replace('""', '"')
    return re.sub(r'\\(["\\])', r"\1", text) if escaped else text


def _quotes_nothing(file: Path, options: DataOptions, header: list[str]) -> bool:
    """Whether quotes are text everywhere in a file with tabs, as in exports that quote nothing.

    They are if a record has quotes that enclose no field, or if quotes enclose only fields that need none.
    """
    lines = _Lines(file, options)
    needed = False
    while (line := lines.look()) is not None:
        count = 1
        if '"' in line[1]:
            found = _quoted(lines, "\t", len(header))
            if found is None:
                return True
            needed, count = needed or any(map(_NEEDS_QUOTES.search, found[2])), found[1]
        for _ in range(count):
            lines.take()
    return not needed
