"""Translation memories (.tmx 1.4b): https://www.gala-global.org/tmx-14b. A unit has a text in several languages."""

from collections.abc import Sequence
from typing import Self

from kauli.models.documents.document import Document, DocumentOptions, Segment, State
from kauli.models.documents.markup import Element, Markup, written
from kauli.models.errors import UsageError
from kauli.models.languages import check_tag

_DRAFT = '<prop type="x-kauli">draft</prop>'


class Tmx(Document):
    """The units of two languages; a translation that is not there is added as another variant."""

    format = "tmx"
    suffixes = (".tmx",)

    def __init__(self, markup: Markup, units: list[tuple[Element, Element | None]], tags: tuple[str, str]) -> None:
        """`units`: (variant to translate from, variant to translate into)."""
        self._markup, self._units, self._tags = markup, units, tags
        self._filled: dict[int, tuple[str, bool]] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for broken XML, and where the languages are neither given nor clear."""
        markup = Markup.read(data, name, "tmx", options.encoding)
        units = markup.root.all("tu")
        variants = [{_tag(one): one for one in unit.all("tuv")} for unit in units]
        there = sorted({tag for one in variants for tag in one if tag})
        header = markup.root.first("header")
        spoken = (header.attributes.get("srclang", "") if header else "").replace("*all*", "")
        source = check_tag(options.source) if options.source else check_tag(spoken) if spoken else ""
        target = check_tag(options.target) if options.target else ""
        if len(there) == 2 and not (source and target):
            known = source or target or there[0]
            other = next((tag for tag in there if _short(tag) != _short(known)), there[1])
            source, target = (source or other, target or other) if source or target else (there[0], there[1])
        if not (source and target):
            raise UsageError(f"{name} has {', '.join(there) or 'no languages'}: name two with --from and --to")
        pairs = []
        for mine in variants:
            by_short = {_short(tag): one for tag, one in mine.items()}
            first, second = (mine.get(tag) or by_short.get(_short(tag)) for tag in (source, target))
            if first is not None:
                pairs.append((first, second))
        if units and not pairs:
            raise UsageError(f"{name} has no text in '{source}': it has {', '.join(there)}")
        return cls(markup, pairs, (source, target))

    @property
    def languages(self) -> tuple[str | None, str | None]:
        """Those that were asked for, or the two that there are."""
        return self._tags

    @property
    def segments(self) -> Sequence[Segment]:
        """The units with a text in the source language."""
        found = []
        for number, (first, second) in enumerate(self._units):
            target = self._text(second) if second is not None else ""
            draft = second is not None and any(self._is_mark(one) for one in second.all("prop"))
            state: State = "missing" if not target.strip() else "draft" if draft else "confirmed"
            if number in self._filled:
                target, draft = self._filled[number]
                state = "draft" if draft else "confirmed"
            found.append(Segment(str(number), self._text(first), target, state))
        return found

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """A draft has the property `x-kauli`."""
        if not id.isdecimal() or int(id) >= len(self._units):
            raise KeyError(id)
        self._filled[int(id)] = (target, draft)

    def write(self) -> bytes:
        """A variant that is not there is added at the end of its unit."""
        edits = []
        for number, (text, draft) in self._filled.items():
            first, second = self._units[number]
            mark = _DRAFT if draft else ""
            segment = first.first("seg")
            content = written(text, markup=bool(segment and segment.children))
            if second is None or second.closed:
                new = f'<tuv xml:lang="{self._tags[1]}">{mark}<seg>{content}</seg></tuv>'
                at = (first.end, first.end) if second is None else (second.begin, second.end)
                edits.append((*at, self._markup.indent(first) * (second is None) + new))
                continue
            there = [one for one in second.children if one.name == "prop" and self._is_mark(one)]
            own = second.first("seg")
            if own is None:
                edits.append((second.inner[1], second.inner[1], f"{mark * (not there)}<seg>{content}</seg>"))
            else:
                edits.append((own.begin, own.end, f"<seg>{content}</seg>") if own.closed else (*own.inner, content))
                if draft and not there:
                    edits.append((own.begin, own.begin, mark))
            if not draft:
                edits += [(one.begin, one.end, "") for one in there]
        return self._markup.spliced(edits)

    def _is_mark(self, one: Element) -> bool:
        return one.attributes.get("type") == "x-kauli" and self._markup.text(one) == "draft"

    def _text(self, variant: Element) -> str:
        segment = variant.first("seg")
        return self._markup.text(segment) if segment is not None else ""


def _tag(variant: Element) -> str:
    tag = variant.attributes.get("xml:lang") or variant.attributes.get("lang") or ""
    return check_tag(tag) if tag else ""


def _short(tag: str) -> str:
    return tag.partition("-")[0]
