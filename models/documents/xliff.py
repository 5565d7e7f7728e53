"""XLIFF 1.2 and 2.x: https://docs.oasis-open.org/xliff/. Inline elements stay in the text as they are written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from kauli.models.documents.document import Document, DocumentOptions, Segment, State
from kauli.models.documents.markup import Element, Markup, written
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag

_DRAFTS = ("needs-review-translation", "needs-translation", "needs-adaptation", "needs-l10n", "new",
           "needs-review-adaptation", "needs-review-l10n")  # fmt: skip
_DRAFT = "kauli:draft"  # in XLIFF 2


@dataclass
class _Unit:
    """A text to translate: <trans-unit> of 1.2, or <segment> of 2."""

    id: str
    element: Element
    source: Element
    target: Element | None
    context: str
    limit: int | None


class Xliff(Document):
    """One file of translation units; a draft's state asks for a review."""

    format = "xliff"
    suffixes = (".xlf", ".xliff")

    def __init__(self, markup: Markup, units: list[_Unit], two: bool, target: str | None) -> None:
        self._markup, self._units, self._two, self._target = markup, units, two, target
        self._filled: dict[str, tuple[str, bool]] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for broken XML, for XML that is no XLIFF, and for files in several languages."""
        markup = Markup.read(data, name, "xliff", options.encoding)
        two = not markup.root.attributes.get("version", "1.2").startswith("1")
        pairs = {(one.attributes.get("source-language"), one.attributes.get("target-language"))
                 for one in markup.root.all("file")}  # fmt: skip
        if not two and len(pairs) > 1:
            told = ", ".join(sorted(f"{source} to {target}" for source, target in pairs))
            raise UsageError(f"{name} holds files in several languages ({told}): write a file for each pair")
        units = []
        for place, element in enumerate(markup.root.all("segment" if two else "trans-unit")):
            around = element.parent if two and element.parent is not None else element
            source = element.first("source")
            if source is None or _stays(element):
                continue
            width = element.attributes.get("maxwidth", "")
            counts = element.attributes.get("size-unit") == "char" and width.isdecimal()
            notes = [markup.text(one) for one in around.all("note")]
            own = f"{place}:{around.attributes.get('id', '')}"
            limit = int(width) if counts else None
            units.append(_Unit(own, element, source, element.first("target"), " | ".join(notes), limit))
        return cls(markup, units, two, options.target)

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """As the root (2) or the first file (1.2) says."""
        root = self._markup.root
        where, keys = (root, ("srcLang", "trgLang")) if self._two else (
            root.first("file") or root, ("source-language", "target-language"),
        )  # fmt: skip
        source, target = (where.attributes.get(key) for key in keys)
        return check_tag(source) if source else None, check_tag(target) if target else None

    @property
    def segments(self) -> Sequence[Segment]:
        """The units that may be translated."""
        found = []
        for unit in self._units:
            target = self._markup.text(unit.target) if unit.target is not None else ""
            state: State = "missing" if not target.strip() else "draft" if self._is_draft(unit) else "confirmed"
            if unit.id in self._filled:
                target, draft = self._filled[unit.id]
                state = "draft" if draft else "confirmed"
            text = self._markup.text(unit.source)
            found.append(Segment(unit.id, text, target, state, unit.context, limit=unit.limit))
        return found

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """The state of a draft is `needs-review-translation`; in XLIFF 2 its sub-state is `kauli:draft`."""
        if not any(unit.id == id for unit in self._units):
            raise KeyError(id)
        self._filled[id] = (target, draft)

    def write(self) -> bytes:
        """New targets stand behind their sources."""
        edits = []
        for unit in self._units:
            if unit.id not in self._filled:
                continue
            text, draft = self._filled[unit.id]
            content = written(text, markup=bool(unit.source.children))
            state = None if self._two else "needs-review-translation" if draft else "translated"
            if self._two:
                sub_state = _DRAFT if draft else None
                edits.append(self._markup.start_tag(unit.element, state="translated", subState=sub_state))
            if unit.target is None or unit.target.closed:
                tag = f"{self._prefix(unit)}target"
                attribute = f' state="{state}"' if state else ""
                new = f"<{tag}{attribute}>{content}</{tag}>"
                at = (unit.element.first("seg-source") or unit.source).end
                edits.append(
                    (at, at, self._markup.indent(unit.source) + new) if unit.target is None
                    else (unit.target.begin, unit.target.end, new)
                )  # fmt: skip
            else:
                edits.append((*unit.target.inner, content))
                if state:
                    edits.append(self._markup.start_tag(unit.target, state=state))
        if edits and self._two and self._target and "trgLang" not in self._markup.root.attributes:
            edits.append(self._markup.start_tag(self._markup.root, trgLang=self._target))  # which targets need
        return self._markup.spliced(edits)

    def _prefix(self, unit: _Unit) -> str:
        """The namespace's prefix of the elements, with its colon."""
        tag = self._markup.data[unit.source.begin + 1 : unit.source.begin + 40].decode(errors="ignore")
        return tag.partition("source")[0] if ":" in tag.partition("source")[0] else ""

    def _is_draft(self, unit: _Unit) -> bool:
        if self._two:
            return (
                unit.element.attributes.get("subState") == _DRAFT or unit.element.attributes.get("state") == "initial"
            )
        state = unit.target.attributes.get("state") if unit.target is not None else None
        return state in _DRAFTS or (state is None and unit.element.attributes.get("approved") == "no")


def _stays(element: Element) -> bool:
    """Whether an element is not translated: the nearest `translate` counts, of itself or of what it is in."""
    one: Element | None = element
    while one is not None:
        if (said := one.attributes.get("translate")) is not None:
            return said == "no"
        one = one.parent
    return False
