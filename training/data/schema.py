"""The one shape of a data set on disk, and its atomic writing."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kauli.models.errors import KauliError

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),  # what could leak into each other; lies in one split
        pa.field("language", pa.string(), nullable=False),  # BCP-47
        pa.field("prompt", pa.string()),
        pa.field("text", pa.string()),  # NFC
        pa.field("image", pa.binary()),  # an encoded file (PNG, JPEG, ...)
        pa.field("audio", pa.binary()),  # an encoded file (Ogg, WAV, FLAC, ...)
        pa.field("source", pa.string()),
        pa.field("licence", pa.string()),
        pa.field("synthetic", pa.bool_(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
        pa.field("flags", pa.string()),  # what is doubtful about the row, e.g. audio_too_fast
    ]
)


def write_parquet(rows: Sequence[Mapping[str, Any]], path: Path, metadata: Mapping[bytes, bytes] | None = None) -> None:
    """Write rows with the keys of SCHEMA; the file appears whole or not at all, the same bytes for the same rows.

    Raises `KauliError` when the disk is full or the folder can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(list(rows), schema=SCHEMA.with_metadata(dict(metadata or {})))
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                pq.write_table(table, file, compression="zstd")
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        finally:
            Path(partial).unlink(missing_ok=True)
    except OSError as error:
        raise KauliError(f"could not write {path}: {error.strerror or error}.") from error
