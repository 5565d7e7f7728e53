"""Parquet files of any layout: the columns that the data set's schema names are read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kauli.training.data.formats.arrow import rows_of_batches
from kauli.training.data.options import DataOptions

_BATCH = 16  # rows decoded at once: they may hold audio


def read_parquet(file: Path, options: DataOptions) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Stream the rows; see `table.Reader`."""
    try:
        with pq.ParquetFile(file, buffer_size=1 << 20) as content:
            yield from rows_of_batches(file, content.schema_arrow, content.iter_batches(_BATCH))
    except (pa.ArrowInvalid, OSError) as error:
        yield "", f"not a Parquet file, or damaged ({error})"
