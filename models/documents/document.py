"""A document in its own format: its segments to translate, and the same bytes again with translations filled in."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from kauli.models.documents.encoded import Encoding

State = Literal["missing", "draft", "confirmed"]


@dataclass(frozen=True)
class Segment:
    """A text of a document that is translated as a whole: a message, a verse, a cue, a paragraph, a cell."""

    id: str
    """Unique in the document, the same whenever the same bytes are read."""
    source: str
    """The text to translate, with its placeholders and inline markup."""
    target: str = ""
    """The translation in the document."""
    state: State = "missing"
    """Of the translation: "draft" is one that nobody has confirmed, such as a fuzzy one of gettext."""
    context: str = ""
    """What a reader should know: msgctxt, a comment, a verse's reference."""
    heading: bool = False
    """Whether it is a title: means over a document leave it out."""
    ambiguous: bool = False
    """Whether the same text may have another translation elsewhere, such as in another plural form or context."""
    limit: int | None = None
    """The most characters that its place has room for."""


@dataclass(frozen=True)
class DocumentOptions:
    """How a document is read; what a format does not need it ignores."""

    source: str | None = None
    """BCP-47 tag of the language to translate from; None: as the document says, or unknown."""
    target: str | None = None
    """BCP-47 tag of the language to translate into."""
    encoding: str | None = None
    """None: as the document says, else by its byte order mark, else UTF-8."""
    delimiter: str | None = None
    """Of columns in CSV."""
    columns: tuple[str, str] | None = None
    """The names of the columns (or JSON keys) with the text and with its translation; the second may be new."""
    tier: str | None = None
    """The tier of an ELAN or Praat file to translate."""


class Document(ABC):
    """One file in memory. `write` without `fill` gives the bytes that were read."""

    format: ClassVar[str]
    """Its name in `kauli.models.documents.table.FORMATS`."""
    suffixes: ClassVar[tuple[str, ...]]
    """Of file names, in small letters, such as ".po"."""
    _encoding: Encoding = Encoding()
    """What it is written in; XML can write any character in any encoding."""
    _name: str = ""

    def check_text(self, text: str) -> None:
        """Raise UsageError for a translation that the document's encoding cannot hold."""
        self._encoding.encode(text, self._name)

    @classmethod
    @abstractmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """The document in `data`. Raises UsageError, which names the file `name`, the line and what is wrong."""

    @property
    @abstractmethod
    def segments(self) -> Sequence[Segment]:
        """All segments in their order, with what was filled in."""

    @abstractmethod
    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """Set a segment's translation. A draft is marked as such where the format can say so, with `note` as a comment.

        Raises KeyError for an unknown id.
        """

    @abstractmethod
    def write(self) -> bytes:
        """The document's bytes: those that were read, but for the translations that were filled in."""

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """The tags of (source, target) as the document names them; None where it does not."""
        return None, None


class Annotations(Document):
    """What is said in a recording, by time."""

    @property
    @abstractmethod
    def spans(self) -> Sequence[tuple[float, float, str]]:
        """(begin, end, text) of the annotations of the tier that hold a text and have a time, in seconds."""

    @property
    def recordings(self) -> Sequence[str]:
        """The file names of the recording, without folders, where the document tells."""
        return ()
