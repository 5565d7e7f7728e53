"""Tables whose rows are segments: CSV and TSV, and JSON Lines. Only the cells of translations change."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from kauli.models.documents.document import Document, DocumentOptions, Segment, State
from kauli.models.documents.encoded import Encoding, decoded, lines_of
from kauli.models.errors import UsageError, nearest, whole

SOURCES = ("source", "text", "english", "en", "original", "input", "src")
"""Columns that are taken for the text where none is named."""
TARGETS = ("target", "translation", "translated", "output", "tgt")
_MIDDLE = "{name} row {number}: a quote in the middle of a cell: put the cell in quotes, and double its own"
_CONTEXTS = ("context", "comment", "id", "key")
_STATE = "kauli_state"
"""The column that says `draft` beside a translation which nobody confirmed."""


@dataclass
class _Row:
    """A row: its text as it was read, and its parsed cells."""

    raw: str
    cells: dict[str, str]
    filled: str | None = None
    draft: bool = False


class _Table(Document):
    """What both have in common: two columns, whose names are given or found."""

    def __init__(
        self, head: str, columns: list[str], rows: list[_Row], named: tuple[str, str], encoding: Encoding, name: str
    ) -> None:
        self._head, self._columns, self._rows, self._encoding, self._name = head, columns, rows, encoding, name
        self._source, self._target = named

    @property
    def segments(self) -> Sequence[Segment]:
        """The rows with a text."""
        found = []
        for number, row in enumerate(self._rows):
            target = row.cells.get(self._target, "") if row.filled is None else row.filled
            context = " | ".join(
                row.cells[name] for name in self._columns if name.lower() in _CONTEXTS and row.cells.get(name)
            )
            draft = row.draft or (row.filled is None and row.cells.get(_STATE, "").strip() == "draft")
            if (source := row.cells.get(self._source, "")).strip():
                state: State = "missing" if not target.strip() else "draft" if draft else "confirmed"
                found.append(Segment(str(number), source, target, state, context))
        return found

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """A draft has the word `draft` in the column `kauli_state`, which is added where there is none."""
        if not id.isdecimal() or int(id) >= len(self._rows):
            raise KeyError(id)
        self._rows[int(id)] = replace(self._rows[int(id)], filled=target, draft=draft)

    def _changes(self, row: _Row) -> dict[str, str]:
        """Column -> its new text, for a row that was filled in."""
        if row.filled is None:
            return {}
        marked = row.draft or bool(row.cells.get(_STATE))
        return {self._target: row.filled} | ({_STATE: "draft" if row.draft else ""} if marked else {})


def _chosen(columns: Sequence[str], options: DocumentOptions, name: str) -> tuple[str, str]:
    """The columns of text and translation."""
    if options.columns is not None:
        source, target = options.columns
        if source not in columns:
            raise UsageError(f"{name} has no column '{source}'.{nearest(source, columns)} It has: {', '.join(columns)}")
        return source, target
    by_name = {column.lower(): column for column in columns}
    wanted = (options.source.lower(), *SOURCES) if options.source else SOURCES
    source = next((by_name[one] for one in wanted if one in by_name), "")
    if not source:
        raise UsageError(
            f"{name}: which column holds the text? It has {', '.join(columns)}: use --columns TEXT,TRANSLATION"
        )
    others = (options.target.lower(), *TARGETS) if options.target else TARGETS
    return source, next((by_name[one] for one in others if one in by_name), options.target or TARGETS[0])


class Delimited(_Table):
    """CSV and TSV with a header; rows that are not filled in keep their bytes."""

    format = "csv"
    suffixes = (".csv", ".tsv")

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for a file without a header or rows that do not match it."""
        text, encoding = decoded(data, name, options.encoding)
        delimiter = options.delimiter or ("\t" if name.lower().endswith(".tsv") else _delimiter(text))
        records = list(_records(text, delimiter, name))
        if not records:
            raise UsageError(f"{name} is empty: it needs a header with the names of the columns")
        columns = records[0][1]
        if len(set(columns)) < len(columns):
            raise UsageError(f"{name}: a column name stands twice in its header: {', '.join(columns)}")
        rows = []
        for number, (raw, cells) in enumerate(records[1:], 2):
            if cells and len(cells) != len(columns):
                raise UsageError(f"{name} row {number}: {len(cells)} cells, but the header has {len(columns)}")
            if cells and len(_split(raw, delimiter)) != len(cells):
                raise UsageError(_MIDDLE.format(name=name, number=number))
            rows.append(_Row(raw, dict(zip(columns, cells, strict=False))))
        table = cls(records[0][0], columns, rows, _chosen(columns, options, name), encoding, name)
        table._delimiter = delimiter
        return table

    def write(self) -> bytes:
        """A column for the translations is added where there is none; all other cells keep their bytes."""
        changes = [self._changes(row) for row in self._rows]
        new = [one for one in (self._target, _STATE) if one not in self._columns and any(one in row for row in changes)]
        columns = [*self._columns, *new]
        out = [self._with(self._head, {one: one for one in new}, columns)]
        for row, changed in zip(self._rows, changes, strict=True):
            out.append(self._with(row.raw, dict.fromkeys(new, "") | changed, columns) if row.cells else row.raw)
        return self._encoding.encode("".join(out), self._name)

    def _with(self, raw: str, changed: dict[str, str], columns: Sequence[str]) -> str:
        """A record with other texts in some of its cells, or with more cells."""
        if not changed:
            return raw
        body, cells = raw.rstrip("\r\n"), _split(raw, self._delimiter)
        cells += [""] * (len(columns) - len(cells))
        for column, text in changed.items():
            out = io.StringIO()
            # Another line end, and it would quote no line ends
            csv.writer(out, delimiter=self._delimiter, lineterminator="\r\n").writerow([text])
            cells[columns.index(column)] = out.getvalue()[:-2] if text else ""
        return self._delimiter.join(cells) + raw[len(body) :]

    _delimiter = ","


class JsonLines(_Table):
    """A JSON object a line."""

    format = "jsonl"
    suffixes = (".jsonl", ".ndjson")

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError with the line that is no JSON object."""
        text, encoding = decoded(data, name, options.encoding)
        rows, columns = [], dict[str, None]()
        for number, line in enumerate(lines_of(text), 1):
            cells: dict[str, Any] = {}
            if line.strip():
                try:
                    cells = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise UsageError(f"{name} line {number}: no JSON: {error}") from None
                if not isinstance(cells, dict):
                    raise UsageError(f'{name} line {number}: a JSON object is needed, such as {{"source": "..."}}')
            texts = {key: whole(value, f"{name} line {number}, '{key}'") for key, value in cells.items()
                     if isinstance(value, str)}  # fmt: skip
            columns |= dict.fromkeys(texts)
            rows.append(_Row(line, texts))
        if not columns:
            raise UsageError(f"{name} holds no JSON objects with texts")
        return cls("", list(columns), rows, _chosen(list(columns), options, name), encoding, name)

    def write(self) -> bytes:
        """All but the values that were filled in keep their bytes."""
        out = "".join(_with_values(row.raw, self._changes(row)) for row in self._rows)
        return self._encoding.encode(out, self._name)


def _with_values(raw: str, changed: dict[str, str]) -> str:
    """A JSON object with other values, or more keys at its end."""
    if not changed:
        return raw
    decoder, places = json.JSONDecoder(), dict[str, tuple[int, int]]()
    at = _filled(raw, raw.index("{") + 1)
    while raw[at] != "}":
        key, at = decoder.raw_decode(raw, at)
        at = _filled(raw, raw.index(":", at) + 1)
        _, end = decoder.raw_decode(raw, at)
        places[key] = (at, end)  # of a key that stands twice, the last counts
        at = _filled(raw, end)
        if raw[at] == ",":
            at = _filled(raw, at + 1)
    edits = [(*places[key], json.dumps(text, ensure_ascii=False)) for key, text in changed.items() if key in places]
    new = {key: text for key, text in changed.items() if key not in places}
    if new:
        last = max((end for _, end in places.values()), default=raw.index("{") + 1)
        comma = ", " if places else ""
        edits.append((last, last, comma + json.dumps(new, ensure_ascii=False)[1:-1]))
    for begin, end, text in sorted(edits, reverse=True):
        raw = raw[:begin] + text + raw[end:]
    return raw


def _filled(raw: str, at: int) -> int:
    """The place of the first character that is no blank."""
    return next(place for place in range(at, len(raw)) if raw[place] not in " \t\r\n")


def _delimiter(text: str) -> str:
    """The likeliest of the usual ones, by the header."""
    header = text.split("\n", 1)[0]
    return max(",;\t|", key=lambda one: (header.count(one), one == ","))


def _split(raw: str, delimiter: str) -> list[str]:
    """The cells of a record as they are written, with their quotes and without the line's end."""
    cells, quoted = [""], False
    for sign in raw.rstrip("\r\n"):
        quoted ^= sign == '"'
        if sign == delimiter and not quoted:
            cells.append("")
        else:
            cells[-1] += sign
    return cells


def _records(text: str, delimiter: str, name: str) -> Any:
    """(text with its line ends, cells) of each record; a quoted cell may hold line ends."""
    raw, number = "", 0
    for line in lines_of(text):
        raw += line
        if raw.count('"') % 2:
            continue
        number += 1
        try:
            found = list(csv.reader(io.StringIO(raw, newline=""), delimiter=delimiter)) if raw.strip() else [[]]
        except csv.Error as error:
            raise UsageError(f"{name} row {number}: {error}") from None
        if len(found) != 1:
            raise UsageError(_MIDDLE.format(name=name, number=number))
        yield raw, found[0]
        raw = ""
    if raw:
        raise UsageError(f"{name}: a quote is opened and never closed, from '{raw[:40].strip()}'")
