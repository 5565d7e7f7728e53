"""ELAN annotations (.eaf): https://www.mpi.nl/tools/elan/EAF_Annotation_Format_3.0_and_ELAN.pdf.

The annotations of one tier are segments. Their translations make a new tier `am@kauli` of the same times; all other
tiers keep their bytes.
"""

import re
from collections.abc import Sequence
from typing import Self
from urllib.parse import unquote
from xml.sax.saxutils import quoteattr

from kauli.models.documents.document import Annotations, DocumentOptions, Segment
from kauli.models.documents.markup import Element, Markup, written
from kauli.models.errors import UsageError, nearest

_KINDS, _VALUE = ("ALIGNABLE_ANNOTATION", "REF_ANNOTATION"), "ANNOTATION_VALUE"


class Elan(Annotations):
    """One tier of a recording's annotations."""

    format = "eaf"
    suffixes = (".eaf",)

    def __init__(self, markup: Markup, tier: Element, new: str) -> None:
        """`new` is the name of the tier that is added."""
        self._markup, self._tier, self._new = markup, tier, new
        self._annotations = {one.attributes.get("ANNOTATION_ID", ""): one for one in tier.all(*_KINDS)}
        self._filled: dict[str, str] = {}

    @classmethod
    def read(cls, data: bytes, name: str, options: DocumentOptions) -> Self:
        """Raises UsageError for broken XML, and where the tier is unknown or not clear."""
        markup = Markup.read(data, name, "ANNOTATION_DOCUMENT", options.encoding)
        tiers = {one.attributes.get("TIER_ID", ""): one for one in markup.root.all("TIER")}
        full = [id for id, one in tiers.items() if any(markup.text(value).strip() for value in one.all(_VALUE))]
        tier = chosen_tier(options.tier, full, list(tiers), name)
        return cls(markup, tiers[tier], new_tier(options.target or "translation", list(tiers)))

    @property
    def segments(self) -> Sequence[Segment]:
        """The annotations of the tier that hold a text."""
        found = []
        for id, one in self._annotations.items():
            value = one.first(_VALUE)
            if value is not None and (text := self._markup.text(value)).strip():
                target = self._filled.get(id, "")
                found.append(Segment(id, text, target, "draft" if target else "missing"))
        return found

    @property
    def spans(self) -> Sequence[tuple[float, float, str]]:
        """Of annotations that refer to others, by the times of these."""
        root = self._markup.root
        times = {one.attributes.get("TIME_SLOT_ID"): one.attributes.get("TIME_VALUE") for one in root.all("TIME_SLOT")}
        every = {one.attributes.get("ANNOTATION_ID"): one for one in root.all(*_KINDS)}
        found = []
        for segment in self.segments:
            one: Element | None = self._annotations[segment.id]
            for _ in every:  # no longer, whatever refers to what
                if one is None or (reference := one.attributes.get("ANNOTATION_REF")) is None:
                    break
                one = every.get(reference)
            slots = [one.attributes.get(f"TIME_SLOT_REF{side}") if one else None for side in (1, 2)]
            begin, end = (int(time) / 1000 if (time := times.get(slot) or "").isdecimal() else -1.0 for slot in slots)
            if 0 <= begin < end:
                found.append((begin, end, segment.source))
        return found

    @property
    def recordings(self) -> Sequence[str]:
        named = [one.attributes for one in self._markup.root.all("MEDIA_DESCRIPTOR")]
        urls = [one.get(key, "") for one in named for key in ("RELATIVE_MEDIA_URL", "MEDIA_URL")]
        return [unquote(url).replace("\\", "/").rpartition("/")[2] for url in urls if url]

    def fill(self, id: str, target: str, *, draft: bool, note: str = "") -> None:
        """A new annotation of the same time."""
        if id not in self._annotations:
            raise KeyError(id)
        self._filled[id] = target

    def write(self) -> bytes:
        """The new tier stands behind the one that is translated."""
        if not self._filled:
            return self._markup.spliced([])
        taken = {one.attributes.get("ANNOTATION_ID", "") for one in self._markup.root.all(*_KINDS)}
        indent = self._markup.indent(self._tier) or "\n    "
        kept = {key: value for key, value in self._tier.attributes.items() if key not in ("TIER_ID", "LANG_REF")}
        lines = [f"{indent}<TIER{_written({**kept, 'TIER_ID': self._new})}>"]
        before = dict[str | None, str]()  # of annotations that share another one: the last that was written
        for number, (id, text) in enumerate(self._filled.items(), 1):
            one = self._annotations[id]
            own = next(f"k{number}-{turn}" for turn in range(1000) if f"k{number}-{turn}" not in taken)
            kept = {key: value for key, value in one.attributes.items()
                    if key not in ("ANNOTATION_ID", "CVE_REF", "PREVIOUS_ANNOTATION")}  # fmt: skip
            shared = one.attributes.get("ANNOTATION_REF")
            if "PREVIOUS_ANNOTATION" in one.attributes and shared in before:
                kept["PREVIOUS_ANNOTATION"] = before[shared]
            before[shared] = own
            lines.append(
                f"{indent}    <ANNOTATION><{one.name}{_written({**kept, 'ANNOTATION_ID': own})}>"
                f"<ANNOTATION_VALUE>{written(text, markup=False)}</ANNOTATION_VALUE></{one.name}></ANNOTATION>"
            )
        lines.append(f"{indent}</TIER>")
        return self._markup.spliced([(self._tier.end, self._tier.end, "".join(lines))])


def chosen_tier(asked: str | None, full: Sequence[str], all_of_them: Sequence[str], name: str) -> str:
    """The tier that is translated: the one asked for, or the only one with texts but those that we added.

    Raises UsageError.
    """
    if asked is not None:
        if asked not in all_of_them:
            known = ", ".join(all_of_them)
            raise UsageError(f"{name} has no tier '{asked}'.{nearest(asked, all_of_them)} It has: {known}")
        return asked
    full = [one for one in full if not re.search(r"@kauli(-\d+)?$", one)]
    if len(full) != 1:
        found = f"the tiers {', '.join(full)}" if full else "no tier with texts"
        raise UsageError(f"{name} has {found}: use --tier NAME")
    return full[0]


def new_tier(tag: str, taken: Sequence[str]) -> str:
    """A name of a tier that is not taken."""
    names = [f"{tag}@kauli", *(f"{tag}@kauli-{number}" for number in range(2, len(taken) + 3))]
    return next(one for one in names if one not in taken)


def _written(attributes: dict[str, str]) -> str:
    return "".join(f" {key}={quoteattr(value)}" for key, value in attributes.items())
