"""The file formats of user data, one file each; a new format is a file beside this one and a line in FORMATS."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kauli.training.data.formats.arrow import read_arrow
from kauli.training.data.formats.delimited import read_delimited
from kauli.training.data.formats.jsonl import read_jsonl
from kauli.training.data.formats.parquet import read_parquet

Reader = Callable[[Path], Iterator[tuple[str, dict[str, Any] | str]]]
"""Streams a file: yields for each row its place ("mine.csv line 3") and its values by column, or what is wrong with it.

An image or audio value is the encoded bytes, a dictionary {bytes, path}, or a path relative to the file's folder.
"""

FORMATS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".jsonl": read_jsonl,
    ".csv": partial(read_delimited, delimiter=","),
    ".tsv": partial(read_delimited, delimiter="\t"),
}
