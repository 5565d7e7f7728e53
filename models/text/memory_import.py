"""Exports of memories (`kauli.models.text.memory_export`) read again: each pair has its own languages and kind."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from kauli.models.documents.encoded import decoded
from kauli.models.documents.markup import Element, Markup
from kauli.models.errors import UsageError
from kauli.models.text.memory_pairs import Confirmed

_NEEDED = ("source", "target", "source_language", "target_language")


def imported(data: bytes, name: str) -> list[Confirmed] | None:
    """The pairs of an export; None where the file is another document.

    Raises UsageError for broken XML and for a pair that lacks a language.
    """
    match PurePath(name).suffix.lower():
        case ".tmx":
            markup = Markup.read(data, name, "tmx")
            header = markup.root.first("header")
            ours = header is not None and header.attributes.get("o-tmf") == "kauli"
            return (
                [_unit(markup, one, f"{name} unit {number}") for number, one in enumerate(markup.root.all("tu"), 1)]
                if ours
                else None
            )
        case ".csv":
            text, _ = decoded(data, name, None)
            rows = csv.DictReader(io.StringIO(text, newline=""))
            if not set(_NEEDED) <= set(rows.fieldnames or ()):
                return None
            return [_row(row, f"{name} row {number}") for number, row in enumerate(rows, 2)]
        case ".jsonl":
            text, _ = decoded(data, name, None)
            lines = [line for line in text.split("\n") if line.strip()]
            try:
                found = [json.loads(line) for line in lines]
            except (ValueError, RecursionError):
                return None  # the reader of documents says what is wrong
            if not found or not all(isinstance(one, dict) and set(_NEEDED) <= set(one) for one in found):
                return None
            return [_row(one, f"{name} line {number}") for number, one in enumerate(found, 1)]
    return None


def _row(row: Mapping[str, Any], where: str) -> Confirmed:
    texts = {key: row.get(key) or "" for key in (*_NEEDED, "origin", "kind")}
    if bad := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise UsageError(f"{where}: {bad[0]} is {texts[bad[0]]!r}, not a text")
    if texts["kind"] not in ("", "pair", "term"):
        raise UsageError(f"{where}: it is of the kind '{texts['kind']}': use pair or term")
    source, target, spoken, wanted = (texts[key] for key in _NEEDED)
    return Confirmed(source, target, spoken, wanted, texts["origin"], "term" if texts["kind"] == "term" else "pair")


def _unit(markup: Markup, unit: Element, where: str) -> Confirmed:
    """A unit has two variants, the source first; its properties say the kind and the origin."""
    sides = [one for one in unit.children if one.name == "tuv"]
    texts = [markup.text(segment) if (segment := one.first("seg")) is not None else "" for one in sides]
    if len(sides) != 2:
        raise UsageError(f"{where}: it has {len(sides)} variants: a pair has two")
    tags = [one.attributes.get("xml:lang") or one.attributes.get("lang") or "" for one in sides]
    said = {one.attributes.get("type"): markup.text(one) for one in unit.children if one.name == "prop"}
    row = dict(zip(_NEEDED, (*texts, *tags), strict=True)) | {"kind": said.get("kind"), "origin": said.get("origin")}
    return _row(row, where)
