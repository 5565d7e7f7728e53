"""The one table of document formats. A new format is a file beside this one and a line here."""

from importlib import import_module

from kauli.models.documents.document import Document, DocumentOptions
from kauli.models.errors import UsageError, nearest

FORMATS = {
    "po": "kauli.models.documents.gettext:Catalogue",
    "xliff": "kauli.models.documents.xliff:Xliff",
    "tmx": "kauli.models.documents.tmx:Tmx",
    "csv": "kauli.models.documents.columns:Delimited",
    "jsonl": "kauli.models.documents.columns:JsonLines",
    "srt": "kauli.models.documents.subtitles:SubRip",
    "vtt": "kauli.models.documents.subtitles:WebVtt",
    "usfm": "kauli.models.documents.usfm:Usfm",
    "markdown": "kauli.models.documents.markdown:Markdown",
    "eaf": "kauli.models.documents.elan:Elan",
    "textgrid": "kauli.models.documents.textgrid:TextGrid",
    "text": "kauli.models.documents.plain:Plain",
}
"""Name -> module and class."""


def open_document(data: bytes, name: str, options: DocumentOptions, format: str | None = None) -> Document:
    """The document in `data`, by `format` or by the suffix of its file's name.

    Raises UsageError for an unknown format, and for a file that is broken, too large, or no document of its format.
    """
    if format is None:
        format = next((one for one in FORMATS if name.lower().endswith(suffixes(one))), None)
        if format is None:
            known = ", ".join(suffix for one in FORMATS for suffix in suffixes(one))
            raise UsageError(f"{name}: no document format has this suffix. Known: {known}. Or name one: {_names()}")
    if format not in FORMATS:
        raise UsageError(f"unknown document format '{format}'.{nearest(format, FORMATS)} Known: {_names()}")
    return _class(format).read(data, name, options)


def suffixes(format: str) -> tuple[str, ...]:
    """The suffixes of a format's file names."""
    return _class(format).suffixes


def _names() -> str:
    return ", ".join(FORMATS)


def _class(format: str) -> type[Document]:
    module, _, name = FORMATS[format].partition(":")
    found: type[Document] = getattr(import_module(module), name)
    return found
