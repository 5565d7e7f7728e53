"""The file formats of user data, one file each; a new format is a file beside this one and a line in FORMATS."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kauli.training.data.formats.arrow import read_arrow
from kauli.training.data.formats.delimited import read_delimited
from kauli.training.data.formats.documents import read_annotations, read_pairs, read_segments
from kauli.training.data.formats.json_objects import read_json
from kauli.training.data.formats.parquet import read_parquet
from kauli.training.data.formats.text import read_texts
from kauli.training.data.options import DataOptions

Reader = Callable[[Path, DataOptions], Iterator[tuple[str, dict[str, Any] | str]]]
"""Streams a file: yields for each row its place ("line 3") and its values by column, or what is wrong with it.

An image or audio value is the encoded bytes, a dictionary {bytes, path}, samples as {array, sampling_rate}, or a path
relative to the file's folder.
"""

DOCUMENTS: dict[str, Reader] = {
    **dict.fromkeys((".po", ".xlf", ".xliff", ".tmx"), read_pairs),
    **dict.fromkeys((".usfm", ".sfm", ".srt", ".vtt", ".md", ".markdown"), read_segments),
    **dict.fromkeys((".eaf", ".textgrid"), read_annotations),
}
"""Of `kauli.models.documents`."""
FORMATS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".json": read_json,
    ".txt": read_texts,
    **DOCUMENTS,
}
SECOND_CHOICE = (".json", ".txt", ".srt", ".vtt", ".md", ".markdown")
"""In a folder, these are data only where no file of another format is there: they often are about the data."""
_GZIPPED = (".jsonl", ".ndjson", ".csv", ".tsv", ".json", ".txt")


def format_of(file: Path) -> str | None:
    """The key in FORMATS for a file's name, in any case, with or without `.gz`; None for what is not read."""
    *_, inner, last = ("", "", *(suffix.lower() for suffix in file.suffixes))
    if last == ".gz":
        return inner if inner in _GZIPPED else None
    return last if last in FORMATS else None
