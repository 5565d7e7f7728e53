"""Import of user data in any of the formats into one Parquet file of SCHEMA, checked, grouped and split.

All problems are collected and reported together, by file and row, before anything is written. Text is held in memory;
images and audio are hashed while they are read, and copied only when the file is written.
"""

import hashlib
import re
import shutil
from base64 import b64decode
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePath
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from kauli.models.errors import KauliError, UsageError
from kauli.models.files import atomic_folder, sha256_file
from kauli.models.languages import check_tag, display_name, nfc
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.training.data.columns import SUFFIXES, check_map, columns_taken, flat, listed, missing, rows_of, told
from kauli.training.data.data_files import SPLIT_NAMES, data_files, foreign
from kauli.training.data.findings import BESIDE, Findings
from kauli.training.data.formats.table import FORMATS, format_of
from kauli.training.data.groups import short_hash
from kauli.training.data.options import DataOptions
from kauli.training.data.schema import MEDIA, SCHEMA, write_parquet
from kauli.training.data.splits import in_groups

FORMAT = 3
"""Increase it when the same data gives other rows: imported files are then written again."""
_SHA256_OF_NOTHING = hashlib.sha256(b"").hexdigest()
_NO_ROWS = "a file without rows"
_SHOWN = 100  # characters of a path
_BROKEN = re.compile("[\ufffd\ud800-\udfff]")
_TEXTS = ("id", "group", "language", "prompt", "input", "input_language", "text", "source", "licence", "split", "flags")


@dataclass(frozen=True)
class _MediaFile:
    """An image or a clip of a row: its hash, and where its bytes are."""

    sha256: str
    number: int
    """The number of its raw row in the order of reading, which holds the bytes if there is no path."""
    path: Path | None
    column: str
    """The column of the file that holds it."""


class _MissingError(ValueError):
    """An image or a clip is not where its row says."""


@dataclass
class _Reading:
    """The state of reading one data set: rows of SCHEMA with their `place`, media as `_MediaFile`, and findings."""

    options: DataOptions
    rows: list[dict[str, Any]] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)
    told: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """What `columns.told` says -> the files of which it says so."""


@dataclass(eq=False)
class _File:
    """One of the data files while it is read."""

    path: Path
    label: str
    """Its path in the data set, as places name it."""
    split: str | None
    """What its name tells."""
    columns: set[str] = field(default_factory=set)
    taken: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)
    """By the columns of a row."""
    blank: list[str] = field(default_factory=list)
    """Places of rows that hold nothing to learn."""
    lost: list[tuple[str, str]] = field(default_factory=list)
    """(place, message) of rows whose image or clip is missing."""
    num_media: int = 0
    """Images and clips that are there, in files of their own."""
    beside: str = ""
    """The folder where the last image or clip was found."""


def import_data(path: Path, options: DataOptions) -> Path:
    """The Parquet file with all rows of the file or folder, beside it one with their places (`read_places`).

    It is written below `<home>/data/imported`, under a hash of the rows, unless it is there. Missing ids are hashes of
    the content, missing groups unite rows that share a prompt, text, image or audio, missing splits follow from the
    group. Raises `UsageError` with the number of problems and the first ten.
    """
    rows = _checked_rows(path, options)
    digest = hashlib.sha256(b"format %d" % FORMAT)
    for row in rows:
        content = {**row, **{name: row[name] and row[name].sha256 for name in MEDIA}}
        digest.update(b"\0" + repr(list(content.items())).encode())
    target = kauli_home() / "data" / "imported" / digest.hexdigest()[:16] / "data.parquet"
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({name: [row[name] for row in rows] for name in ("id", "place")}), _places_file(target))
        with _media_reader(path, options, rows, target.parent) as read:
            write_parquet(({**row, **{name: row[name] and read(row[name]) for name in MEDIA}} for row in rows), target)
    except OSError as error:  # the disk is full, or the home not writable
        raise KauliError(f"could not write {target}: {error.strerror or error}.") from error
    return target


def write_folder(files: Sequence[Path], folder: Path) -> None:
    """Write imported or built files into a data folder of the user's, which appears whole or not at all.

    Raises UsageError where the folder holds anything else than an earlier import, KauliError where it can't be written.
    """
    if folder.exists() and not (folder.is_dir() and {one.suffix for one in folder.iterdir()} <= {".parquet"}):
        raise UsageError(f"{folder} exists and is no data folder: choose another one with --out.")
    try:
        with atomic_folder(folder) as partial:
            for file in files:
                shutil.copyfile(file, partial / file.name)
    except OSError as error:
        raise KauliError(f"could not write {folder}: {error.strerror or error}.") from error


def _places_file(imported: Path) -> Path:
    return imported.with_name("places.parquet")


def read_places(imported: Path) -> dict[str, str]:
    """Where each row of an imported file was read ("mine.csv line 12"), by id; empty for a file of another origin."""
    file = _places_file(imported)
    return dict(zip(*pq.read_table(file).to_pydict().values(), strict=True)) if file.is_file() else {}


def _checked_rows(path: Path, options: DataOptions) -> list[dict[str, Any]]:
    check_map(options.map)
    reading = _Reading(options)
    for file, rows in groupby(enumerate(_raw_rows(path, options)), key=lambda item: item[1][0]):
        for number, (_file, place, raw) in rows:
            if raw == _NO_ROWS:
                reading.findings.left_out(_NO_ROWS, file.label)
            elif isinstance(raw, str):
                reading.findings.problem(file.label, place, raw)
            else:
                _take(raw, place, number, file, reading)
        _finish(file, reading)
    _check_ids(reading)
    reading.findings.check(path)
    for text, labels in reading.told.items():
        more = f" and {len(labels) - 1} more files" if len(labels) > 1 else ""
        note(f"{labels[0]}{more}: {text}")
    reading.findings.tell(path)
    if not reading.rows:
        raise UsageError(f"{path} holds no rows.")
    united = in_groups(reading.rows, options.leaks, path)
    return sorted(united, key=lambda row: str(row["id"]))


def _raw_rows(path: Path, options: DataOptions) -> Iterator[tuple[_File, str, dict[str, Any] | str]]:
    """(file, place in it, values or what is wrong) of each row, always in the same order."""
    said = options.input_language if "input_language" not in options.map else None
    beside = {"input_language": said} if said else {}
    for file, split in data_files(path):
        opened = _File(file, file.name if file == path else file.relative_to(path).as_posix(), split)
        fault = foreign(file)
        place = None
        for place, raw in [("", fault)] if fault else FORMATS[format_of(file) or ""](file, options):
            yield opened, place, raw if isinstance(raw, str) else {**beside, **flat(raw)}
        if place is None:
            yield opened, "", _NO_ROWS


def _finish(file: _File, reading: _Reading) -> None:
    """What can be said of a file when all its rows are known: its columns, and blank rows."""
    for fault in missing(reading.options.map, file.columns) if file.columns else ():
        reading.findings.problem(file.label, "", fault)
    taken = {ours: name for one in file.taken.values() for ours, name in one.items()}
    if file.columns and not set(taken) & {"text", "messages", "file", *MEDIA}:
        text = f"no column is known to hold a text, image or audio: it has {listed(file.columns)}"
        reading.findings.problem(file.label, "", text)
        return
    reading.findings.columns(file.label, told(taken, file.columns, whole=True))
    if text := told(taken, file.columns):
        reading.told[text].append(file.label)
    for place, message in file.lost:
        if len(file.lost) <= file.num_media:
            what = "a row whose image or audio is missing or empty, left out"
            reading.findings.left_out(what, f"{file.label} {place}, {message.removesuffix(' is missing or empty')}")
        else:  # the folder isn't the right one
            reading.findings.problem(file.label, place, message)
    for place in file.blank:
        reading.findings.left_out("a row without text, image or audio, left out", place)


@contextmanager
def _media_reader(
    path: Path, options: DataOptions, rows: Sequence[dict[str, Any]], folder: Path
) -> Iterator[Callable[[_MediaFile], bytes]]:
    """A function that reads the bytes of any row's media; those within data files are copied to a temporary one."""
    inline: dict[int, dict[str, str]] = defaultdict(dict)
    for row in rows:
        for name in MEDIA:
            if row[name] and not row[name].path:
                inline[row[name].number][name] = row[name].column
    copied: dict[str, tuple[int, int]] = {}
    with TemporaryFile(dir=folder) as copies:
        for number, (*_, raw) in enumerate(_raw_rows(path, options) if inline else ()):
            for name, column in inline.get(number, {}).items():
                content = _media_value(name, raw.get(column)) if isinstance(raw, dict) else None
                if isinstance(content, bytes) and (key := hashlib.sha256(content).hexdigest()) not in copied:
                    copied[key] = copies.tell(), copies.write(content)

        def read(media: _MediaFile) -> bytes:
            if media.path:
                content = media.path.read_bytes() if media.path.is_file() else b""
            else:
                offset, size = copied.get(media.sha256, (0, 0))
                copies.seek(offset)
                content = copies.read(size)
            if hashlib.sha256(content).hexdigest() != media.sha256:
                raise KauliError(f"{media.path or path} changed while it was imported: start again.")
            return content

        yield read


def _take(raw: dict[str, Any], place: str, number: int, file: _File, reading: _Reading) -> None:
    """Convert one raw row to rows of SCHEMA, or add to the findings."""
    keys = tuple(raw)
    if keys not in file.taken:
        file.taken[keys] = columns_taken(keys, reading.options.map)
        file.columns.update(keys)
    where = f"{file.label} {place}".rstrip()
    try:
        found = rows_of(raw, file.taken[keys])
    except ValueError as error:
        reading.findings.problem(file.label, place, str(error))
        return
    for values in found:
        for what in values["left_out"]:
            reading.findings.left_out(what, where)
        try:
            row = _row(values, where, number, file, reading)
        except UsageError as error:
            reading.findings.problem(file.label, place, str(error).removesuffix("."))
        except _MissingError as error:
            file.lost.append((place, str(error)))
        except ValueError as error:
            reading.findings.problem(file.label, place, str(error))
        else:
            if row is None:
                file.blank.append(where)
            else:
                reading.rows.append(row)


def _row(values: dict[str, Any], where: str, number: int, file: _File, reading: _Reading) -> dict[str, Any] | None:
    """The row of SCHEMA with its `place`; None where there is nothing to learn."""
    row: dict[str, Any] = {name: _text(name, values.get(name)) for name in _TEXTS}
    row |= {name: _media(name, values.get(name), number, file, values["columns"]) for name in MEDIA}
    for name in ("prompt", "input", "text"):
        if "\0" in (row[name] or ""):
            row[name] = row[name].replace("\0", " ").strip() or None
            reading.findings.left_out(f"a NUL in {name}, which became a blank", where)
    if not (row["text"] or row["image"] or row["audio"]):
        return None
    row["split"] = _split(row["split"]) if row["split"] else file.split
    if not (row["language"] or reading.options.language):
        raise ValueError("no language")
    row["language"] = check_tag(row["language"] or reading.options.language)
    if not (row["input"] and row["input_language"]):
        row |= {"input": None, "input_language": None}
    else:
        row["input_language"] = check_tag(row["input_language"])
        row["prompt"] = row["prompt"] or f"Translate into {display_name(row['language'])}: {row['input']}"
    row["synthetic"] = _truth(values.get("synthetic"))
    names = ", ".join(row[name].path.name for name in MEDIA if row[name] and row[name].path)
    return {**{name: row.get(name) for name in SCHEMA.names}, "place": f"{where} ({names})" if names else where}


def _text(name: str, value: Any) -> str | None:
    """NFC text, None for an empty one; ids and groups may be integers."""
    if value is None or value != value:  # pandas has NaN where there is none
        return None
    if isinstance(value, int) and name in ("id", "group"):
        value = str(value)
    if not isinstance(value, str):
        way = ": give each row a text of its own" if isinstance(value, dict | list) else ""
        raise ValueError(f"{name} is {type(value).__name__}, not text{way}")
    if _BROKEN.search(value):
        raise ValueError(f"{name} was decoded wrongly when the file was made (it holds U+FFFD or a lone surrogate)")
    return nfc(value).strip() or None


def _split(value: str) -> str:
    if value.lower() not in SPLIT_NAMES:
        raise ValueError(f"unknown split '{value}' (train, validation or test)")
    return SPLIT_NAMES[value.lower()]


def _truth(value: Any) -> bool:
    if value in (None, False, True, 0, 1):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false", "0", "1", "yes", "no"):
        return value.lower() in ("true", "1", "yes")
    raise ValueError(f"synthetic is '{value}', not true or false")


def _media_value(name: str, value: Any) -> bytes | str | None:
    """The bytes of an encoded image or clip or its path; `datasets` gives {bytes, path} or {array, sampling_rate}."""
    if isinstance(value, dict) and set(value) >= {"array", "sampling_rate"}:
        return _encoded(name, value["array"], value["sampling_rate"])
    if isinstance(value, dict) and set(value) >= {"bytes", "path"}:
        value = value["bytes"] or value["path"]
    if isinstance(value, str) and value.startswith("data:"):
        try:
            value = b64decode(value.partition(",")[2], validate=True)
        except ValueError as error:
            raise ValueError(f"{name} is a data: URI that can't be decoded ({error})") from error
    if value is not None and not isinstance(value, bytes | str):
        raise ValueError(f"{name} is {type(value).__name__}, neither bytes nor a path")
    return value or None


def _encoded(name: str, samples: Any, rate: Any) -> bytes:
    """Samples in [-1, 1] as a FLAC file of 24 bits, the same bytes each time."""
    try:
        # `datasets` has (channels, samples); integers are of 16 bits
        array = np.atleast_2d(np.asarray(samples, dtype=None if samples else np.float64))
        array = array / 32768 if array.dtype.kind in "iu" and np.abs(array).max(initial=0) > 1 else array
        if not (array.ndim == 2 and array.size and array.dtype.kind in "iuf" and np.isfinite(array).all()):
            raise ValueError("they are not finite numbers in one row a channel")
        content = BytesIO()
        soundfile.write(content, array.T.astype(np.float64), int(rate), format="FLAC", subtype="PCM_24")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} has samples that can't be used, at a rate of {rate}: {error.error_string}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has samples that can't be used: {error}") from error
    return content.getvalue()


def _media(name: str, given: Any, number: int, file: _File, columns: dict[str, str]) -> _MediaFile | None:
    value = _media_value(name, given)
    if value is None:
        return None
    if isinstance(value, bytes):
        return _MediaFile(hashlib.sha256(value).hexdigest(), number, None, columns[name])
    folder = file.path.parent
    stem = file.path.name.split(".")[0]
    if "://" in value:
        raise ValueError(f"{name} '{value[:_SHOWN]}' is an address: download the files, and give their names")
    suffixes = ("", *SUFFIXES[name]) if not PurePath(value).suffix else ("",)
    for beside in dict.fromkeys((file.beside, "", *(one.format(stem=stem) for one in BESIDE))):
        path = value.replace("\\", "/")
        try:
            options = [(folder / beside / f"{path}{suffix}").resolve() for suffix in suffixes]
            found = next((one for one in options if one.is_file()), options[0])
            there = found.is_file() and found.stat().st_size > 0
        except (OSError, ValueError):  # no name that a file could have
            break
        if not found.is_relative_to(folder.resolve()):
            raise ValueError(f"{name} '{value[:_SHOWN]}' is outside the data's folder")
        if there:
            file.beside, file.num_media = beside, file.num_media + 1
            return _MediaFile(sha256_file(found), number, found, columns[name])
    raise _MissingError(f"{name} '{value[:_SHOWN]}' is missing or empty")


def _check_ids(reading: _Reading) -> None:
    """Fill missing ids and drop copies of rows without ids; repeated ids and groups in two splits are problems."""
    first: dict[str, str] = {}
    side: dict[str, tuple[str, str]] = {}
    kept = []
    for row in reading.rows:
        place = row["place"]
        if row["id"] is None:
            media = [row[name].sha256 if row[name] else _SHA256_OF_NOTHING for name in MEDIA]
            row["id"] = short_hash(row["language"], row["prompt"] or "", row["text"] or "", row["group"] or "", *media)
            if row["id"] in first:
                reading.findings.left_out("an exact copy of an earlier row, left out", place)
                continue
        elif row["id"] in first:
            reading.findings.problem("", place, f"id '{row['id']}' is used in {first[row['id']]} already")
            continue
        first[row["id"]] = place
        if row["group"] and row["split"]:
            split, where = side.setdefault(row["group"], (row["split"], place))
            if split != row["split"]:
                text = f"group '{row['group']}' is in {row['split']} here and in {split} in {where}"
                reading.findings.problem("", place, text)
        kept.append(row)
    reading.rows = kept
