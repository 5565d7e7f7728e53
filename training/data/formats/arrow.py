"""Arrow: its streaming format, which folders saved by Hugging Face `datasets` consist of, and its file format."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from kauli.training.data.options import DataOptions


def read_arrow(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`."""
    try:
        with pa.memory_map(str(file)) as source:
            if source.read(6) == b"ARROW1":
                whole = pa.ipc.open_file(source)
                batches = map(whole.get_batch, range(whole.num_record_batches))
                yield from rows_of_batches(file, whole.schema, batches)
            else:
                source.seek(0)
                stream = pa.ipc.open_stream(source)
                yield from rows_of_batches(file, stream.schema, stream)
    except (pa.ArrowInvalid, OSError) as error:
        yield "", f"not an Arrow file, or damaged ({error})"


def rows_of_batches(
    file: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The rows of record batches with their places, one decoded at a time; classes by their names."""
    classes = _class_names(file, schema)
    number = 0
    for batch in batches:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        for index in range(batch.num_rows):
            number += 1
            raw: dict[str, Any] | str
            try:
                raw = {name: column[index].as_py() for name, column in columns.items()}
                for name, names in classes.items():
                    if isinstance(label := raw.get(name), int):  # -1 is a row without one
                        raw[name] = names[label] if label >= 0 else None
            except UnicodeDecodeError as error:
                raw = f"not UTF-8 ({error.reason})"
            except IndexError:
                raw = f"{name} is {label}, and there are {len(names)} classes"
            yield f"row {number}", raw


def _class_names(file: Path, schema: pa.Schema) -> dict[str, list[str]]:
    """Column -> names of the classes that its numbers stand for, as `datasets` writes them into a file or beside it."""
    beside = file.with_name("dataset_info.json")
    try:
        own = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features")
        features = own or (json.loads(beside.read_bytes()).get("features") if beside.is_file() else None) or {}
        return {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    except (ValueError, AttributeError, TypeError, KeyError):  # of another program: then numbers stay numbers
        return {}
