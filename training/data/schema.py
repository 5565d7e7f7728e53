"""The columns of a data set on disk, and its atomic writing."""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kauli.models.errors import KauliError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # rows that share content; a group is in one split
        pa.field("language", pa.string(), nullable=False),  # BCP-47
        pa.field("prompt", pa.string()),
        pa.field("input", pa.string()),  # what `text` translates, NFC
        pa.field("input_language", pa.string()),  # BCP-47
        pa.field("text", pa.string()),  # NFC
        pa.field("image", pa.binary()),  # an encoded file (PNG, JPEG, ...)
        pa.field("audio", pa.binary()),  # an encoded file (Ogg, WAV, FLAC, ...)
        pa.field("source", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
        pa.field("flags", pa.string()),  # a doubt about the row, e.g. audio_too_fast: `kauli data check` counts them
    ]
)
MEDIA = ("image", "audio")
LATER = ("input", "input_language")
"""Columns that older files lack: where they are empty, the hash of a data set leaves them out."""
PLAIN_COLUMNS = tuple(name for name in SCHEMA.names if name not in MEDIA)
_ROWS_A_GROUP = 1 << 14
_BYTES_A_GROUP = 4 << 20
"""Row groups hold no more rows and no more image and audio bytes: readers hold one group, random access reads one."""
_DICTIONARY = ["group", "language", "prompt", "input_language", "source", "licence", "synthetic", "split", "flags"]
_COMPRESSION = {name: "none" if name in MEDIA else "zstd" for name in SCHEMA.names}  # media files are compressed


def write_parquet(rows: Iterable[Mapping[str, Any]], path: Path, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write rows with the keys of SCHEMA; the file appears whole or not at all, the same bytes for the same rows.

    `rows` may be a generator: no more than one row group is in memory. Raises `KauliError` when the disk is full or
    the folder is not writable.
    """
    schema = SCHEMA.with_metadata(dict(metadata or {}))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                pq.ParquetWriter(file, schema, compression=_COMPRESSION, use_dictionary=_DICTIONARY) as writer,
            ):
                for group in _row_groups(rows):
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise KauliError(f"could not write {path}: {error.strerror or error}.") from error


def _row_groups(rows: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    group: list[Mapping[str, Any]] = []
    size = 0
    for row in rows:
        own = sum(len(row.get(name) or b"") for name in MEDIA)
        if group and (len(group) == _ROWS_A_GROUP or size + own > _BYTES_A_GROUP):
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    if group:
        yield group
