"""The files of a user's data set: which ones are read, and the split that a name tells."""

from collections.abc import Sequence
from glob import escape
from pathlib import Path

from kauli.models.errors import UsageError
from kauli.models.progress import note
from kauli.training.data.columns import kind_of
from kauli.training.data.formats.table import FORMATS, SECOND_CHOICE, format_of

READABLE = f"{', '.join(FORMATS)} (those of text also as .gz) or a folder saved by `datasets`"
SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)
"""What splits are called -> train, validation or test."""
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # of `datasets`, no data
# Of Common Voice beside `clips/`: no clips, clips that were voted down, and what train, dev and test are chosen from
_NO_CLIPS = ("invalidated", "other", "reported", "clip_durations", "validated_sentences", "unvalidated_sentences")
_PACKED = {".zip": "unpack it first", ".tar": "unpack it first", ".tgz": "unpack it first", ".gz": "unpack it first"}
_PACKED |= {".xlsx": "save it as CSV", ".xls": "save it as CSV", ".ods": "save it as CSV"}
# Of files that have the name of a format of text, and aren't one
_FOREIGN = {
    b"PK\3\4": "a ZIP archive or an Excel file: unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file: save it as CSV",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself by git lfs pull",
    b"%PDF-": "a PDF: save its table as CSV",
    b"PAR1\x15": "a Parquet file: call it .parquet",
    b"ARROW1\0": "an Arrow file: call it .arrow",
    b"SQLite format 3\0": "an SQLite database: save its table as CSV",
} | dict.fromkeys((b"<!DOCTYPE", b"<!doctype", b"<html"), "a web page: download the file itself")


def foreign(file: Path) -> str | None:
    """What a file is by its first bytes, and what to do, where they don't fit its name; None where they may."""
    with file.open("rb") as handle:
        start = handle.read(32)
    found = next((what for mark, what in _FOREIGN.items() if start.lstrip().startswith(mark)), "")
    return f"this is {found}" if found and not found.endswith(f" {format_of(file)}") else None


def data_files(path: Path) -> list[tuple[Path, str | None]]:
    """Data files in order, each with the split that its name tells."""
    if path.is_file():
        if format_of(path) is None:
            way = _PACKED.get(path.suffix.lower(), f"give a file or folder of {READABLE}")
            raise UsageError(f"can't read '{path}': {way}.")
        return [(path, None)]
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and _may_be_data(file, path)]
    first = [file for file in found if format_of(file) not in SECOND_CHOICE]
    chosen = first or [file for file in found if format_of(file) == ".json"] or found
    table = "Images and clips need a table that names them, such as metadata.csv with file_name and text."
    if not chosen:
        raise UsageError(f"no data in '{path}': it holds no file of {READABLE}. {table}")
    for file in chosen if not first else ():
        beside = [other for other in file.parent.glob(f"{escape(file.stem)}.*") if kind_of(other.name)]
        if format_of(file) == ".txt" and beside:
            raise UsageError(f"'{path}' has '{file.name}' beside '{beside[0].name}'. {table}")
    if len(chosen) < len(found):
        others = ", ".join(file.relative_to(path).as_posix() for file in found if file not in chosen)
        note(f"{path}: not read, since there is data in other formats: {others}")
    splits = [(file, _split_in(file.relative_to(path))) for file in _without_copies(path, chosen)]
    if {split for _file, split in splits} == {"train"}:  # `datasets` calls unsplit data `train`
        return [(file, None) for file, _split in splits]
    return splits


def _may_be_data(file: Path, path: Path) -> bool:
    if any(part.startswith(".") for part in file.relative_to(path).parts) or file.name in _ABOUT:
        return False
    if file.suffix == ".arrow" and file.name.startswith("cache-"):  # results that `datasets` cached, not data
        return False
    return format_of(file) is not None


def _without_copies(path: Path, files: Sequence[Path]) -> list[Path]:
    """The files without those of Common Voice that repeat train, dev and test, or hold no good clips."""

    def is_kept(file: Path) -> bool:
        names = (*_NO_CLIPS, "validated") if file.with_name("train.tsv").is_file() else _NO_CLIPS
        return not (file.suffix == ".tsv" and file.stem in names and file.with_name("clips").is_dir())

    kept = [file for file in files if is_kept(file)]
    if len(kept) < len(files):
        others = ", ".join(file.relative_to(path).as_posix() for file in files if file not in kept)
        note(f"{path}: not read, since they repeat others or list no good clips: {others}")
    return kept


def _split_in(inner: Path) -> str | None:
    """`train/data-00000.arrow`, `test-00000-of-00001.parquet` and `dev.jsonl` name a split."""
    for part in (inner.stem.replace("_", "-").split("-")[0], *(folder.lower() for folder in inner.parts[:-1])):
        if part.lower() in SPLIT_NAMES:
            return SPLIT_NAMES[part.lower()]
    return None
