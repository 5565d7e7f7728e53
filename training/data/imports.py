"""Import of user data in any of the formats into one Parquet file of SCHEMA, checked, grouped and split.

All problems are collected and reported together, by file and row, before anything is written. Text is held in memory;
images and audio are hashed while they are read, and copied only when the file is written.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kauli.models.errors import KauliError, UsageError
from kauli.models.files import sha256_file
from kauli.models.languages import check_tag, nfc
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.training.data.formats.table import FORMATS
from kauli.training.data.groups import STRONGEST_FIRST, Groups, normalise, short_hash, split_by_chance, strongest
from kauli.training.data.options import DataOptions
from kauli.training.data.schema import MEDIA, SCHEMA, write_parquet

FORMAT = 3
"""Increase it when the same data gives other rows: imported files are then written again."""
READABLE = f"{', '.join(FORMATS)} or a folder saved by `datasets`"
_NUM_SHOWN = 10
_SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
_ALIASES = {"license": "licence", "lang": "language"}
_SHA256_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_TEXTS = ("id", "group", "language", "prompt", "text", "source", "licence", "split", "flags")


@dataclass(frozen=True)
class _MediaFile:
    """An image or a clip of a row: its hash, and where its bytes are."""

    sha256: str
    number: int
    """The number of its raw row in the order of reading, which holds the bytes if there is no path."""
    path: Path | None


@dataclass
class _Reading:
    """The state of reading one data set: rows of SCHEMA with their `place`, media as `_MediaFile`, and problems."""

    language: str | None
    rows: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown_columns: set[str] = field(default_factory=set)


def import_data(path: Path, options: DataOptions) -> Path:
    """The Parquet file with all rows of the file or folder, beside it one with their places (`read_places`).

    It is written below `<home>/data/imported`, under a hash of the rows, unless it is there. Missing ids are hashes of
    the content, missing groups unite rows that share a prompt, text, image or audio, missing splits follow from the
    group. Raises `UsageError` with the number of problems and the first ten.
    """
    rows = _checked_rows(path, options.language)
    digest = hashlib.sha256(b"format %d" % FORMAT)
    for row in rows:
        for name in (*SCHEMA.names, "place"):
            value = row[name].sha256 if isinstance(row[name], _MediaFile) else row[name]
            digest.update(f"\0{name}={value!r}".encode())
    target = kauli_home() / "data" / "imported" / digest.hexdigest()[:16] / "data.parquet"
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in ("id", "place")}), _places_file(target))
        with _media_reader(path, rows, target.parent) as read:
            write_parquet(({**row, **{name: row[name] and read(row[name]) for name in MEDIA}} for row in rows), target)
    except OSError as error:  # the disk is full, or the home not writable
        raise KauliError(f"could not write {target}: {error.strerror or error}.") from error
    return target


def _places_file(imported: Path) -> Path:
    return imported.with_name("places.parquet")


def read_places(imported: Path) -> dict[str, str]:
    """Where each row of an imported file was read ("mine.csv line 12"), by id; empty for a file of another origin."""
    file = _places_file(imported)
    return dict(zip(*pq.read_table(file).to_pydict().values(), strict=True)) if file.is_file() else {}


def _checked_rows(path: Path, language: str | None) -> list[dict[str, Any]]:
    reading = _Reading(language)
    for number, (file, split, place, raw) in enumerate(_raw_rows(path)):
        if isinstance(raw, str):
            reading.problems.append(f"{place}: {raw}")
        else:
            _take(raw, place, number, file.parent, split, reading)
    _check_ids(reading)
    _raise_problems(path, reading)
    if not reading.rows:
        raise UsageError(f"{path} holds no rows.")
    if reading.unknown_columns:
        note(f"{path}: columns not used: {', '.join(sorted(reading.unknown_columns))}")
    _fill_groups(reading, path)
    return sorted(reading.rows, key=lambda row: str(row["id"]))


def _raw_rows(path: Path) -> Iterator[tuple[Path, str | None, str, dict[str, Any] | str]]:
    """(file, split that its name tells, place, values or what is wrong) of each row, always in the same order."""
    for file, split in _files(path):
        for place, raw in FORMATS[file.suffix](file):
            yield file, split, place, raw


@contextmanager
def _media_reader(path: Path, rows: Sequence[dict[str, Any]], folder: Path) -> Iterator[Callable[[_MediaFile], bytes]]:
    """A function that reads the bytes of any row's media; those within data files are copied to a temporary one."""
    inline: dict[int, list[str]] = defaultdict(list)
    for row in rows:
        for name in MEDIA:
            if row[name] and not row[name].path:
                inline[row[name].number].append(name)
    places: dict[str, tuple[int, int]] = {}
    with TemporaryFile(dir=folder) as copies:
        for number, (*_, raw) in enumerate(_raw_rows(path) if inline else ()):
            for name in inline.get(number, ()):
                content = _media_value(name, raw.get(name)) if isinstance(raw, dict) else None
                if isinstance(content, bytes) and (key := hashlib.sha256(content).hexdigest()) not in places:
                    places[key] = copies.tell(), copies.write(content)

        def read(media: _MediaFile) -> bytes:
            if media.path:
                content = media.path.read_bytes() if media.path.is_file() else b""
            else:
                offset, size = places.get(media.sha256, (0, 0))
                copies.seek(offset)
                content = copies.read(size)
            if hashlib.sha256(content).hexdigest() != media.sha256:
                raise KauliError(f"{media.path or path} changed while it was imported: start again.")
            return content

        yield read


def _files(path: Path) -> list[tuple[Path, str | None]]:
    """Data files in order, each with the split that its name tells."""
    if path.is_file():
        if path.suffix not in FORMATS:
            raise UsageError(f"can't read '{path}': give a file or folder of {READABLE}.")
        return [(path, None)]
    found: list[tuple[Path, str | None]] = []
    for file in sorted(path.rglob("*")):
        inner = file.relative_to(path)
        if file.is_file() and not any(part.startswith(".") for part in inner.parts):
            if file.suffix == ".arrow" and file.name.startswith("cache-"):  # results that `datasets` cached, not data
                continue
            if file.suffix in FORMATS:
                found.append((file, _split_in(inner)))
    if not found:
        raise UsageError(f"no data in '{path}': it holds no file of {READABLE}.")
    if {split for _file, split in found} == {"train"}:  # `datasets` calls unsplit data `train`
        return [(file, None) for file, _split in found]
    return found


def _split_in(inner: Path) -> str | None:
    """`train/data-00000.arrow`, `test-00000-of-00001.parquet` and `dev.jsonl` name a split."""
    for part in (inner.stem.replace("_", "-").split("-")[0], *(folder.lower() for folder in inner.parts[:-1])):
        if part.lower() in _SPLIT_NAMES:
            return _SPLIT_NAMES[part.lower()]
    return None


def _take(raw: dict[str, Any], place: str, number: int, folder: Path, split: str | None, reading: _Reading) -> None:
    """Convert one raw row to SCHEMA, or add to the problems."""
    values = {_ALIASES.get(key, key): value for key, value in raw.items()}
    reading.unknown_columns |= set(values) - set(SCHEMA.names)
    try:
        row: dict[str, Any] = {name: _text(name, values.get(name)) for name in _TEXTS}
        row["split"] = _split(row["split"]) if row["split"] else split
        row["language"] = check_tag(row["language"] or reading.language or "")
        row |= {name: _media(name, values.get(name), number, folder) for name in MEDIA}
        row["synthetic"] = _truth(values.get("synthetic"))
        if not (row["text"] or row["image"] or row["audio"]):
            raise ValueError("empty: neither text nor image nor audio")
    except UsageError as error:
        named = "language" in values and values["language"]
        reading.problems.append(f"{place}: {str(error).split(':')[0] if named else 'no language'}")
    except ValueError as error:
        reading.problems.append(f"{place}: {error}")
    else:
        reading.rows.append({**{name: row[name] for name in SCHEMA.names}, "place": place})


def _text(name: str, value: Any) -> str | None:
    """NFC text, None for an empty one; ids and groups may be integers."""
    if value is None:
        return None
    if isinstance(value, int) and name in ("id", "group"):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__}, not text")
    if "\ufffd" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{name} was decoded wrongly when the file was made (it holds U+FFFD or a lone surrogate)")
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


def _media_value(name: str, value: Any) -> bytes | str | None:
    """The bytes of an encoded image or clip or its path, given as such or as `datasets`' {bytes, path}."""
    if isinstance(value, dict) and set(value) >= {"bytes", "path"}:
        value = value["bytes"] or value["path"]
    if value is not None and not isinstance(value, bytes | str):
        raise ValueError(f"{name} is {type(value).__name__}, neither bytes nor a path")
    return value or None


def _media(name: str, given: Any, number: int, folder: Path) -> _MediaFile | None:
    value = _media_value(name, given)
    if value is None:
        return None
    if isinstance(value, bytes):
        return _MediaFile(hashlib.sha256(value).hexdigest(), number, None)
    file = (folder / value).resolve()
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} '{value}' is outside the data's folder")
    if not file.is_file() or not file.stat().st_size:
        raise ValueError(f"{name} '{value}' is missing or empty")
    return _MediaFile(sha256_file(file), number, file)


def _check_ids(reading: _Reading) -> None:
    """Fill missing ids and drop copies of rows without ids; repeated ids and groups in two splits are problems."""
    first: dict[str, str] = {}
    side: dict[str, tuple[str, str]] = {}
    kept, repeated = [], 0
    for row in reading.rows:
        place = row["place"]
        if row["id"] is None:
            media = [row[name].sha256 if row[name] else _SHA256_OF_NOTHING for name in MEDIA]
            row["id"] = short_hash(row["language"], row["prompt"] or "", row["text"] or "", row["group"] or "", *media)
            if row["id"] in first:
                repeated += 1
                continue
        elif row["id"] in first:
            reading.problems.append(f"{place}: id '{row['id']}' is used in {first[row['id']]} already")
            continue
        first[row["id"]] = place
        if row["group"] and row["split"]:
            split, where = side.setdefault(row["group"], (row["split"], place))
            if split != row["split"]:
                reading.problems.append(
                    f"{place}: group '{row['group']}' is in {row['split']} here and in {split} in {where}"
                )
        kept.append(row)
    reading.rows = kept
    if repeated:
        note(f"{repeated:,} rows are exact copies of others and were left out")


def _raise_problems(path: Path, reading: _Reading) -> None:
    if reading.problems:
        shown = "\n".join(f"  {problem}" for problem in reading.problems[:_NUM_SHOWN])
        count = len(reading.problems)
        tail = f"\n  and {count - _NUM_SHOWN:,} more" if count > _NUM_SHOWN else ""
        counted = f"{count:,} problem{'s' if count > 1 else ''}"
        raise UsageError(f"{path} has {counted}; correct or remove these rows:\n{shown}{tail}")


def _fill_groups(reading: _Reading, path: Path) -> None:
    """Unite rows that share content in groups, and give each group one split."""
    rows = reading.rows
    prompts = Counter(normalise(row["prompt"]) for row in rows if row["prompt"])
    # A prompt of many rows is an instruction ("Describe the image"), and unites nothing
    instruction = max(10, len(rows) // 20)
    # Neither does a text of many rows that all have an image or audio: it is a class label
    with_media = Counter(normalise(row["text"]) for row in rows if row["text"] and (row["image"] or row["audio"]))
    texts = Counter(normalise(row["text"]) for row in rows if row["text"])
    labels = {text for text, count in texts.items() if count > instruction and with_media[text] == count}
    groups = Groups()
    for row in rows:
        keys = [f"row:{row['id']}"]
        keys += [f"group:{row['group']}"] if row["group"] else []
        keys += [f"text:{text}"] if row["text"] and (text := normalise(row["text"])) not in labels else []
        keys += [f"text:{text}"] if row["prompt"] and prompts[text := normalise(row["prompt"])] <= instruction else []
        keys += [f"{name}:{row[name].sha256}" for name in MEDIA if row[name]]
        groups.link(keys)
    by_root = defaultdict(list)
    for row in rows:
        by_root[groups.find(f"row:{row['id']}")].append(row)
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
            f"{path}: {dropped:,} rows of train or validation share a text, image or audio "
            "with validation or test rows and were left out"
        )
    if not given:
        _fill_splits(reading.rows, path)


def _fill_splits(rows: list[dict[str, Any]], path: Path) -> None:
    """Give a split that chance left empty, as happens in small data sets, the groups with the smallest hashes."""
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
            sizes = Counter(by_group.values())
            largest = max(STRONGEST_FIRST[::-1], key=sizes.__getitem__)
            moved = set([group for group in groups if by_group[group] == largest][:share])
            for row in rows:
                row["split"] = split if row["group"] in moved else row["split"]
