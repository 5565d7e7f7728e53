"""Memories as files of other tools: TMX, CSV and JSON lines."""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from xml.etree import ElementTree

import regex

from kauli.models.errors import UsageError
from kauli.models.text.memory_pairs import Stored

_FORBIDDEN = regex.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")  # XML 1.0, section 2.2
_COLUMNS = ("source", "target", "source_language", "target_language", "kind", "origin", "id", "added")


def as_tmx(pairs: Sequence[Stored]) -> bytes:
    """TMX 1.4; terms have the property `kind`. Raises UsageError for a character that XML can't hold."""
    root = ElementTree.Element("tmx", version="1.4")
    ElementTree.SubElement(
        root, "header",
        {
            "creationtool": "kauli", "creationtoolversion": version("kauli"), "segtype": "sentence", "o-tmf": "kauli",
            "adminlang": "en", "srclang": "*all*", "datatype": "plaintext",
        },
    )  # fmt: skip
    body = ElementTree.SubElement(root, "body")
    for pair in pairs:
        if found := _FORBIDDEN.search(pair.source + pair.target + pair.origin):
            raise UsageError(
                f"the pair {pair.id} holds the character U+{ord(found[0]):04X}, which XML forbids: export to .jsonl"
            )
        created = regex.sub("[-:]", "", pair.added[:19]) + "Z"
        unit = ElementTree.SubElement(body, "tu", tuid=pair.id, srclang=pair.source_language, creationdate=created)
        for name, value in (("kind", pair.kind if pair.kind != "pair" else ""), ("origin", pair.origin)):
            if value:
                ElementTree.SubElement(unit, "prop", type=name).text = value
        for language, text in ((pair.source_language, pair.source), (pair.target_language, pair.target)):
            ElementTree.SubElement(ElementTree.SubElement(unit, "tuv", {"xml:lang": language}), "seg").text = text
    ElementTree.indent(body)
    written: bytes = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return written + b"\n"


def as_csv(pairs: Sequence[Stored]) -> bytes:
    """UTF-8, a header line, `source` and `target` first."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(pair) for pair in pairs)
    return text.getvalue().encode()


def as_jsonl(pairs: Sequence[Stored]) -> bytes:
    """A pair a line."""
    return "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs).encode()


FORMATS: dict[str, Callable[[Sequence[Stored]], bytes]] = {".tmx": as_tmx, ".csv": as_csv, ".jsonl": as_jsonl}
"""By suffix."""


def exported(pairs: Sequence[Stored], name: str) -> bytes:
    """The file `name` in the format of its suffix; UsageError for a suffix that is none of FORMATS."""
    suffix = PurePath(name).suffix.lower()
    if suffix not in FORMATS:
        raise UsageError(f"a memory can't be exported to '{name}': give a file that ends in {', '.join(FORMATS)}")
    return FORMATS[suffix](pairs)
