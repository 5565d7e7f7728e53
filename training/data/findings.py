"""What an import finds wrong, and what it leaves out: told once a kind, with the places of some of the rows."""

import re
from pathlib import Path

from kauli.models.errors import UsageError
from kauli.models.progress import note

_NUM_SHOWN, _NUM_PLACES = 10, 3
_DETAIL = re.compile(r"'[^']*'|\d+")
BESIDE = ("clips", "audio", "audios", "wavs", "images", "{stem}", "audio/{stem}")
"""Folders in which media of a file are looked for: Common Voice, FLEURS and LJ Speech name the file alone."""
_LOOKED = (
    f"files are looked for beside the data's, there in {', '.join(BESIDE[:5])} and in a folder called as the data's: "
    "write their paths from there"
)
_WAYS_OUT = {
    "not UTF-8": "the encoding can be named: --encoding cp1252 (Western Europe), cp1250, cp1251, ...; in a recipe "
    "data_options.encoding",
    "no language": "name the language: --language TAG, or the column that holds it: --map language=COLUMN; in a recipe "
    "data_options.language and data_options.map.language",
    "unknown language": "a column that holds no tags can be left out: --map language= --language TAG",
    "id ": "a column `id` whose values repeat can be left out: --map id=",
    "image '": _LOOKED,
    "audio '": _LOOKED,
    "no column": "name the columns: --map text=COLUMN,prompt=COLUMN,...; in a recipe data_options.map.text. CSV needs "
    "a header line, nothing above it, and its delimiter (--delimiter). JSON needs an object for each row, as pandas' "
    "to_json(orient='records') writes",
    "more fields": "the header line is the first, and a text that holds the delimiter stands in double quotes",
    "not JSON": "each line is one object with names and texts in double quotes, or the file is one array of them",
}
"""Start of a problem -> what to do about it."""


class Findings:
    """Problems, which stop an import, and what is left out or changed, which does not."""

    def __init__(self) -> None:
        self._problems: dict[tuple[str, str], tuple[str, str, list[str]]] = {}
        self._columns: dict[str, str] = {}
        self._notes: dict[str, list[str]] = {}

    def columns(self, file: str, text: str) -> None:
        """How the columns of a file were taken, which its problems may come from."""
        if text:
            self._columns[file] = text

    def problem(self, file: str, place: str, message: str) -> None:
        """Something that has to be corrected; those of one file that differ in names and numbers alone are one kind."""
        kind = _DETAIL.sub("", message)
        self._problems.setdefault((file, kind), (f"{file} {place}".strip(), message, []))[2].append(place)

    def left_out(self, what: str, place: str) -> None:
        """A row, or a part of it, that is not in the data; `what` reads on from "3 x "."""
        self._notes.setdefault(what, []).append(place)

    def check(self, path: Path) -> None:
        """Raise UsageError with the first kinds of problems, if there are any."""
        kinds = list(self._problems.values())
        count = sum(len(found) for *_, found in kinds)
        if not count:
            return
        lines = []
        for place, message, found in kinds[:_NUM_SHOWN]:
            more = f"; so in {len(found) - 1:,} more ({places(found[1:])})" if len(found) > 1 else ""
            lines.append(f"  {place}: {message}{more}")
        rest = sum(len(found) for *_, found in kinds[_NUM_SHOWN:])
        lines += [f"  and {rest:,} more"] if rest else []
        named = dict.fromkeys(file for file, _kind in self._problems if file in self._columns)
        lines += [f"  {file}: {self._columns[file]}" for file in list(named)[:_NUM_SHOWN]]
        messages = [message for _, message, _ in kinds]
        ways = [way for start, way in _WAYS_OUT.items() if any(message.startswith(start) for message in messages)]
        lines += [f"  {way[0].upper()}{way[1:]}." for way in ways]
        counted = f"{count:,} problem{'s' * (count > 1)}"
        raise UsageError("\n".join([f"{path} has {counted}; correct or remove these rows:", *lines]))

    def tell(self, path: Path) -> None:
        """A note for each kind of what was left out."""
        for what, found in self._notes.items():
            note(f"{path}: {len(found):,} x {what} ({places(found)})")


def places(found: list[str]) -> str:
    """The first of some places."""
    return ", ".join(found[:_NUM_PLACES]) + ", ..." * (len(found) > _NUM_PLACES)
