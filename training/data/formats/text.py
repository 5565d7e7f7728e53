"""Lines of text files: their encoding, their line ends, and gzip."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kauli.training.data.options import DataOptions

# The longer marks first: that of UTF-32 begins like that of UTF-16
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-16", "utf-32")  # a byte of a line end is part of other characters, too

Line = tuple[int, str, str | None]
"""The number from 1, the text with its line end, and what is wrong with it: then the text is empty."""


def read_lines(file: Path, options: DataOptions) -> Iterator[Line]:
    """Stream the lines of a text file, which may be gzipped; they end in LF, CR LF or CR.

    What can't be decoded is a line with a fault; in UTF-16, UTF-32 and a damaged `.gz` it is the last one.
    """
    number = 0
    try:
        with file.open("rb") as handle:
            packed = handle.peek(2).startswith(b"\x1f\x8b")  # some names don't tell
            stream = io.BufferedReader(gzip.GzipFile(fileobj=handle)) if packed else handle
            encoding = options.encoding or _encoding(stream.peek(4)[:4])
            if encoding.startswith(_WIDE):
                text = io.TextIOWrapper(stream, encoding, newline="")
                for number, line in enumerate(text, start=1):
                    yield number, line.removeprefix("\ufeff") if number == 1 else line, None
                return
            lines = (line for block in stream for line in block.splitlines(keepends=True))
            for number, raw in enumerate(lines, start=1):
                try:
                    line = raw.decode(encoding)
                except UnicodeDecodeError as error:
                    yield number, "", f"not {encoding.upper()} (byte {error.start + 1})"
                else:
                    yield number, line.removeprefix("\ufeff") if number == 1 else line, None
    except UnicodeError as error:
        yield number + 1, "", f"not {encoding.upper()} ({getattr(error, 'reason', error)})"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield number + 1, "", f"the gzip file is damaged or cut off ({error})"


def _encoding(start: bytes) -> str:
    """By the first four bytes: a mark, or the zeros of Latin letters in UTF-16."""
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            return encoding
    if len(start) == 4 and bool(start[0]) == bool(start[2]) != bool(start[1]) == bool(start[3]):
        return "utf-16-le" if start[0] else "utf-16-be"
    return "utf-8"


def read_texts(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows of a `.txt` file, a text a line; see `table.Reader`. Empty lines are skipped."""
    for number, line, fault in read_lines(file, options):
        if fault is not None or line.strip():
            yield f"line {number}", fault or {"text": line}
