"""Arrow's streaming format, which folders saved by Hugging Face `datasets` consist of."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa


def read_arrow(file: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`."""
    try:
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as batches:
            yield from rows_of_batches(file, batches)
    except (pa.ArrowInvalid, OSError) as error:
        yield file.name, f"not an Arrow stream, or damaged ({error})"


def rows_of_batches(file: Path, batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """The rows of record batches with their places, one decoded at a time."""
    number = 0
    for batch in batches:
        for index in range(batch.num_rows):
            number += 1
            raw: dict[str, Any] | str
            try:
                raw = {name: batch.column(name)[index].as_py() for name in batch.schema.names}
            except UnicodeDecodeError as error:
                raw = f"not UTF-8 ({error.reason})"
            yield f"{file.name} row {number}", raw
