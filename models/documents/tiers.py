"""Transcripts as a tier of annotations: a new file of ELAN or Praat, or one more tier in a file that is there.

Everything else in that file keeps its bytes. The tier is called `transcript@kauli`.
"""

from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from kauli.models.documents.elan import new_tier
from kauli.models.documents.markup import Markup, written
from kauli.models.documents.textgrid import with_intervals
from kauli.models.errors import UsageError

Span = tuple[float, float, str]
"""(begin, end, text), in seconds."""
_EMPTY = (
    '<?xml version="1.0" encoding="UTF-8"?>\n'
    '<ANNOTATION_DOCUMENT AUTHOR="" DATE="1970-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
    'xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">\n'
    '    <HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">{media}</HEADER>\n'
    "    <TIME_ORDER>\n    </TIME_ORDER>\n"
    '    <LINGUISTIC_TYPE GRAPHIC_REFERENCES="false" LINGUISTIC_TYPE_ID="default-lt" TIME_ALIGNABLE="true"/>\n'
    "</ANNOTATION_DOCUMENT>\n"
)


def elan_of(spans: Sequence[Span], recording: str, into: bytes | None = None, name: str = "") -> bytes:
    """An .eaf with the spans as a tier: a new one for a recording, or `into` (of the file `name`) with one more tier.

    Raises UsageError where `into` is no ELAN file, or has no type for annotations with times.
    """
    media = f'<MEDIA_DESCRIPTOR MEDIA_URL={quoteattr(f"./{recording}")} MIME_TYPE="audio/x-wav"/>'
    markup = Markup.read(into or _EMPTY.replace("{media}", media).encode(), name, "ANNOTATION_DOCUMENT")
    root = markup.root
    order = root.first("TIME_ORDER")
    types = [one for one in root.all("LINGUISTIC_TYPE") if one.attributes.get("TIME_ALIGNABLE", "true") == "true"
             and "CONSTRAINTS" not in one.attributes]  # fmt: skip
    if order is None or not types:
        raise UsageError(f"{name} has no type of annotations with times: add one in ELAN")
    taken = {value for one in root.all("TIME_SLOT", "ALIGNABLE_ANNOTATION", "REF_ANNOTATION")
             for key, value in one.attributes.items() if key.endswith("_ID")}  # fmt: skip
    mark = next(f"k{turn}-" for turn in range(1000) if not any(one.startswith(f"k{turn}-") for one in taken))
    slots, lines = [], []
    tier = new_tier("transcript", [one.attributes.get("TIER_ID", "") for one in root.all("TIER")])
    kind = types[0].attributes.get("LINGUISTIC_TYPE_ID", "")
    for number, (begin, end, text) in enumerate(spans, 1):
        own = f"{mark}{number}"
        for slot, value in ((f"{own}a", begin), (f"{own}b", end)):
            slots.append(f'        <TIME_SLOT TIME_SLOT_ID="{slot}" TIME_VALUE="{round(1000 * value)}"/>\n')
        lines.append(
            f'        <ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{own}" TIME_SLOT_REF1="{own}a" '
            f'TIME_SLOT_REF2="{own}b"><ANNOTATION_VALUE>{written(text, markup=False)}</ANNOTATION_VALUE>'
            "</ALIGNABLE_ANNOTATION></ANNOTATION>\n"
        )
    body = f"    <TIER LINGUISTIC_TYPE_REF={quoteattr(kind)} TIER_ID={quoteattr(tier)}>\n{''.join(lines)}    </TIER>\n"
    tiers = root.all("TIER")
    at = tiers[-1].end if tiers else order.end
    edits = [(at, at, "\n" + body.rstrip("\n"))]
    if order.closed:
        edits.append((order.begin, order.end, f"<TIME_ORDER>\n{''.join(slots)}    </TIME_ORDER>"))
    else:
        inside = markup.data[slice(*order.inner)]
        blank = len(inside) - len(inside.rstrip(b" \t\r\n"))
        edits.append((order.inner[1] - blank, order.inner[1], f"\n{''.join(slots)}    "))
    return markup.spliced(edits)


def textgrid_of(
    spans: Sequence[Span], seconds: float, into: bytes | None = None, name: str = "", tier: str = "transcript"
) -> bytes:
    """A TextGrid with the spans as a tier of intervals, without gaps, as Praat wants them; see `elan_of`."""
    own, at = list[Span](), 0.0
    for begin, end, text in spans:
        begin, end = max(at, begin), min(end, seconds)
        if end <= begin:
            continue
        own += [(at, begin, "")] if begin > at else []
        own.append((begin, end, text))
        at = end
    own += [(at, seconds, "")] if at < seconds else []
    empty = (
        'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \n'
        f"xmax = {seconds:.6g} \ntiers? <exists> \nsize = 0 \nitem []: \n"
    )
    return with_intervals(into or empty.encode(), name, tier, own)
