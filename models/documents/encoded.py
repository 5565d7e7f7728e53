"""Bytes of a document as text and back, in the same encoding, with the same byte order mark."""

import codecs
import io
from dataclasses import dataclass

from kauli.models.errors import UsageError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_NO_TEXT = {"idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "utf_7"}
"""Codecs of other things than documents."""


@dataclass(frozen=True)
class Encoding:
    """How a text's bytes are written."""

    name: str = "utf-8"
    mark: bytes = b""
    """The byte order mark before them."""

    def encode(self, text: str, where: str, lacking: str = "strict") -> bytes:
        """The bytes of a text; `lacking` as `errors` of `str.encode`. Raises UsageError where it lacks a character."""
        try:
            return self.mark + text.encode(self.name, lacking)
        except UnicodeEncodeError as error:
            if error.start >= len(text):  # of a codec that is none for documents
                raise UsageError(f"{where}: its encoding {self.name} can't be written: save it as UTF-8") from None
            sign = text[error.start]
            raise UsageError(
                f"{where}: its encoding {self.name} has no '{sign}' (U+{ord(sign):04X}): save it as UTF-8 first"
            ) from None


def decoded(data: bytes, where: str, encoding: str | None) -> tuple[str, Encoding]:
    """A document's text; `encoding` None: by its byte order mark, else UTF-8.

    Raises UsageError for an unknown encoding, bytes that are none of its text, and NUL characters.
    """
    mark, found = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", encoding or "utf-8"))
    if not mark and (plain := found.lower().replace("-", "").replace("_", "")) in ("utf16", "utf32", "utf8sig"):
        # These would add a mark when written; without one the order of bytes shows in the first character
        order = "-be" if data[:1] == b"\0" else "-le"
        found = "utf-8" if plain == "utf8sig" else f"utf-{plain[3:]}{order}"
    try:
        text = data[len(mark) :].decode(found)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{where} line {line}: byte 0x{data[len(mark) + error.start]:02x} is no {found}: name its encoding with "
            "--encoding, such as cp1252 or utf-16"
        ) from None
    except (LookupError, UnicodeError):
        raise UsageError(f"{where}: there is no encoding '{encoding}': use a name such as utf-8 or cp1252") from None
    if not isinstance(text, str) or found.lower().replace("-", "_") in _NO_TEXT:
        raise UsageError(f"{where}: there is no encoding '{encoding}': use a name such as utf-8 or cp1252")
    if "\0" in text:
        raise UsageError(f"{where}: it holds NUL characters: it is no text, or in another encoding (--encoding utf-16)")
    return text, Encoding(found, mark)


def lines_of(text: str) -> list[str]:
    """The lines with their ends; only CR, LF and CRLF end one, not the other signs that `str.splitlines` takes."""
    return list(io.StringIO(text, newline=""))
