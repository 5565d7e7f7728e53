"""Reading other people's data: Parquet, JSONL, CSV, and the folders of Hugging Face `datasets`, into rows of SCHEMA.

Everything that is wrong is collected and told at once, by file and row, before anything is written or trained.
"""

import csv
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kauli.models.errors import UsageError
from kauli.models.languages import check_tag, nfc
from kauli.models.progress import note
from kauli.training.data.groups import (
    Concepts,
    media_key,
    normalise,
    short_hash,
    split_by_chance,
    strongest,
)
from kauli.training.data.schema import SCHEMA

SUFFIXES = (".parquet", ".jsonl", ".csv", ".tsv", "datasets folder")
_NUM_SHOWN = 10
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
_ALIASES = {"license": "licence", "lang": "language"}
_TEXTS = ("id", "group", "language", "prompt", "text", "source", "licence", "split", "flags")


@dataclass
class _Reading:
    """The state of reading one data set: rows with their places, and what is wrong with them."""

    language: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown_columns: set[str] = field(default_factory=set)


def import_rows(path: Path, language: str | None = None) -> list[dict[str, Any]]:
    """All rows of the file or folder with the keys of SCHEMA; `language` is that of rows that name none.

    Missing ids are hashes of the content, missing groups tie rows that share a prompt, text, picture or recording,
    missing splits follow from the group. Raises `UsageError` with up to ten problems and their number.
    """
    reading = _Reading(language)
    for file, split in _files(path):
        for place, raw in _read(file, reading):
            _take(raw, place, file.parent, split, reading)
    _check_ids(reading)
    _raise_problems(path, reading)
    if not reading.rows:
        raise UsageError(f"{path} holds no rows.")
    if reading.unknown_columns:
        note(f"{path}: columns not used: {', '.join(sorted(reading.unknown_columns))}")
    _fill_groups(reading, path)
    return sorted(reading.rows, key=lambda row: str(row["id"]))


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """Data files in order, each with the split that its name tells."""
    if path.is_file():
        if path.suffix not in SUFFIXES and path.suffix != ".arrow":
            raise UsageError(f"can't read '{path}': give a file or folder of {', '.join(SUFFIXES)}.")
        return [(path, None)]
    found: list[tuple[Path, str | None]] = []
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inner.parts):
            if file.suffix == ".arrow" and file.name.startswith("cache-"):  # what `datasets` computed, not data
                continue
            if file.suffix in (".parquet", ".jsonl", ".csv", ".tsv", ".arrow"):
                found.append((file, _split_in(inner)))
    if not found:
        raise UsageError(f"no data in '{path}': it holds no file of {', '.join(SUFFIXES)}.")
    if {split for _file, split in found} == {"train"}:  # a data set that was never split is called `train` too
        return [(file, None) for file, _split in found]
    return found


def _split_in(inner: Path) -> str | None:
    """`train/data-00000.arrow`, `test-00000-of-00001.parquet` and `dev.jsonl` name a split."""
    for part in (inner.stem.replace("_", "-").split("-")[0], *(folder.lower() for folder in inner.parts[:-1])):
        if part.lower() in _SPLIT_NAMES:
            return _SPLIT_NAMES[part.lower()]
    return None


def _read(file: Path, reading: _Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, raw row) of one file; lines that can't be read become problems."""
    match file.suffix:
        case ".jsonl":
            yield from _read_jsonl(file, reading)
        case ".csv" | ".tsv":
            yield from _read_csv(file, reading)
        case _:
            yield from _read_arrow(file, reading)


def _read_jsonl(file: Path, reading: _Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        place = f"{file.name} line {number}"
        if not line.strip():
            continue
        try:
            raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            reading.problems.append(f"{place}: not UTF-8 (byte {error.start + 1})")
        except json.JSONDecodeError as error:
            reading.problems.append(f"{place}: not JSON ({error.msg}, column {error.colno})")
        else:
            if isinstance(raw, dict):
                yield place, raw
            else:
                reading.problems.append(f"{place}: not an object {{...}}")


def _read_csv(file: Path, reading: _Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = []
    for number, line in enumerate(file.read_bytes().splitlines(keepends=True), start=1):
        try:
            lines.append(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            reading.problems.append(f"{file.name} line {number}: not UTF-8 (byte {error.start + 1})")
            lines.append("\n")
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(lines, delimiter="\t" if file.suffix == ".tsv" else ",")
    try:
        for raw in reader:
            place = f"{file.name} line {reader.line_num}"
            if None in raw:
                reading.problems.append(f"{place}: more fields than the header has columns")
            else:
                yield place, {key: value or None for key, value in raw.items()}
    except csv.Error as error:
        reading.problems.append(f"{file.name} line {reader.line_num}: {error}")


def _read_arrow(file: Path, reading: _Reading) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        if file.suffix == ".parquet":
            batches = pq.ParquetFile(file).iter_batches(256)
        else:  # `datasets` writes the streaming format, `map` caches too
            batches = iter(pa.ipc.open_stream(pa.memory_map(str(file))))
        number = 0
        for batch in batches:
            for index in range(batch.num_rows):
                number += 1
                try:
                    raw = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
                except UnicodeDecodeError as error:
                    reading.problems.append(f"{file.name} row {number}: not UTF-8 ({error.reason})")
                else:
                    yield f"{file.name} row {number}", raw
    except (pa.ArrowInvalid, OSError) as error:
        reading.problems.append(f"{file.name}: no {file.suffix[1:]} file, or a damaged one ({error})")


def _take(raw: dict[str, Any], place: str, folder: Path, split: str | None, reading: _Reading) -> None:
    """Bring one raw row into the shape of SCHEMA, or add to the problems."""
    values = {_ALIASES.get(key, key): value for key, value in raw.items()}
    reading.unknown_columns |= set(values) - set(SCHEMA.names)
    try:
        row: dict[str, Any] = {name: _text(name, values.get(name)) for name in _TEXTS}
        row["split"] = _split(row["split"]) if row["split"] else split
        row["language"] = check_tag(row["language"] or reading.language or "")
        row["image"] = _media("image", values.get("image"), folder)
        row["audio"] = _media("audio", values.get("audio"), folder)
        row["synthetic"] = _truth(values.get("synthetic"))
        if not (row["text"] or row["image"] or row["audio"]):
            raise ValueError("empty: neither text nor image nor audio")
    except UsageError as error:
        named = "language" in values and values["language"]
        reading.problems.append(f"{place}: {str(error).split(':')[0] if named else 'no language'}")
    except ValueError as error:
        reading.problems.append(f"{place}: {error}")
    else:
        reading.rows.append({name: row[name] for name in SCHEMA.names})
        reading.places.append(place)


def _text(name: str, value: Any) -> str | None:
    """NFC text, None for an empty one; numbers are taken as ids and groups."""
    if value is None:
        return None
    if isinstance(value, int) and name in ("id", "group"):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    if "\ufffd" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{name} was decoded wrongly before it came here (it holds U+FFFD or half a character)")
    return nfc(value).strip() or None


def _split(value: str) -> str:
    if value.lower() not in _SPLIT_NAMES:
        raise ValueError(f"unknown split '{value}' (train, validation or test)")
    return _SPLIT_NAMES[value.lower()]


def _truth(value: Any) -> bool:
    if value in (None, False, True, 0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false", "0", "1", "yes", "no"):
        return value.lower() in ("true", "1", "yes")
    raise ValueError(f"synthetic is '{value}', not true or false")


def _media(name: str, value: Any, folder: Path) -> bytes | None:
    """The encoded bytes of a picture or clip: given as bytes, as `datasets`' {bytes, path}, or as a path."""
    if isinstance(value, dict) and set(value) >= {"bytes", "path"}:
        value = value["bytes"] or value["path"]
    if value is None or value == "" or value == b"":
        return None
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, neither bytes nor a path")
    file = (folder / value).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} '{value}' lies outside the data's folder")
    if not file.is_file() or not file.stat().st_size:
        raise ValueError(f"{name} '{value}' is missing or empty")
    return file.read_bytes()


def _check_ids(reading: _Reading) -> None:
    """Fill missing ids and drop rows given twice without ids; an id given twice, or a group in two splits, is wrong."""
    first: dict[str, str] = {}
    side: dict[str, tuple[str, str]] = {}
    kept, places, repeated = [], [], 0
    for row, place in zip(reading.rows, reading.places, strict=True):
        if row["id"] is None:
            media = [hashlib.sha256(row[name] or b"").hexdigest() for name in ("image", "audio")]
            row["id"] = short_hash(row["language"], row["prompt"] or "", row["text"] or "", row["group"] or "", *media)
            if row["id"] in first:
                repeated += 1
                continue
        elif row["id"] in first:
            reading.problems.append(f"{place}: id '{row['id']}' stands in {first[row['id']]} already")
            continue
        first[row["id"]] = place
        if row["group"] and row["split"]:
            split, where = side.setdefault(row["group"], (row["split"], place))
            if split != row["split"]:
                reading.problems.append(
                    f"{place}: group '{row['group']}' is in {row['split']} here and in {split} in {where}"
                )
        kept.append(row)
        places.append(place)
    reading.rows, reading.places = kept, places
    if repeated:
        note(f"{repeated:,} rows are exact copies of others and were left out")


def _raise_problems(path: Path, reading: _Reading) -> None:
    if reading.problems:
        shown = "\n".join(f"  {problem}" for problem in reading.problems[:_NUM_SHOWN])
        more = len(reading.problems) - _NUM_SHOWN
        tail = f"\n  and {more:,} more" if more > 0 else ""
        count = len(reading.problems)
        counted = f"{count:,} problem{'s' if count > 1 else ''}"
        raise UsageError(f"{path} has {counted}; correct or remove these rows:\n{shown}{tail}")


def _fill_groups(reading: _Reading, path: Path) -> None:
    """Tie rows that could leak into each other, and give each group one split."""
    rows = reading.rows
    prompts = Counter(normalise(row["prompt"]) for row in rows if row["prompt"])
    # A prompt that stands in many rows is an instruction ("Describe the picture"), which ties nothing
    instruction = max(10, len(rows) // 20)
    # So does a text that stands beside many pictures or recordings: it is a class
    pictured = Counter(normalise(row["text"]) for row in rows if row["text"] and (row["image"] or row["audio"]))
    texts = Counter(normalise(row["text"]) for row in rows if row["text"])
    labels = {text for text, count in texts.items() if count > instruction and pictured[text] == count}
    concepts = Concepts()
    for row in rows:
        keys = [f"row:{row['id']}"]
        keys += [f"group:{row['group']}"] if row["group"] else []
        keys += [f"text:{text}"] if row["text"] and (text := normalise(row["text"])) not in labels else []
        keys += [f"text:{text}"] if row["prompt"] and prompts[text := normalise(row["prompt"])] <= instruction else []
        keys += [media_key(name, row[name]) for name in ("image", "audio") if row[name]]
        concepts.link(keys)
    by_root = defaultdict(list)
    for row in rows:
        by_root[concepts.find(f"row:{row['id']}")].append(row)
    given = any(row["split"] for row in rows)
    dropped = 0
    reading.rows = []
    for root, members in sorted(by_root.items()):
        sides = {row["split"] for row in members if row["split"]}
        split = strongest(sides) if sides else split_by_chance(root)
        kept = [row for row in members if row["split"] in (None, split)]
        dropped += len(members) - len(kept)
        for row in kept:
            row["group"], row["split"] = short_hash(root), split
        reading.rows += kept
    if dropped:
        note(
            f"{path}: {dropped:,} rows of train or validation share a text, picture or recording "
            "with validation or test rows and were left out"
        )
    if not given:
        _fill_splits(reading.rows, path)


def _fill_splits(rows: list[dict[str, Any]], path: Path) -> None:
    """Chance can leave a split of a small data set empty: then it gets the groups with the smallest hashes."""
    groups = sorted({row["group"] for row in rows}, key=lambda group: short_hash("fill", group))
    if len(groups) < 3:
        raise UsageError(
            f"{path} can't be split: its {len(rows):,} rows fall into {len(groups)} group(s) that share texts or media."
            " Give more different rows, or a `split` column."
        )
    share = max(1, len(groups) // 12)
    for split in ("test", "validation", "train"):
        if not any(row["split"] == split for row in rows):
            by_group = {row["group"]: row["split"] for row in rows}
            largest = max(set(by_group.values()), key=list(by_group.values()).count)
            moved = set([group for group in groups if by_group[group] == largest][:share])
            for row in rows:
                row["split"] = split if row["group"] in moved else row["split"]
