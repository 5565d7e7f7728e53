"""Which files of a folder are data, and which split their names tell."""

from pathlib import Path

import pytest

from kauli.models.errors import UsageError
from kauli.training.data.data_files import data_files
from kauli.training.data.formats.table import format_of


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(("a.CSV", ".csv"), ("a.Jsonl.GZ", ".jsonl"), ("a.b.tsv", ".tsv"), ("a.txt.gz", ".txt")),
        *(("a.parquet.gz", None), ("a.gz", None), ("csv", None), ("a.tar.gz", None), ("a.xlsx", None), (".csv", None)),
    ],
)  # fmt: skip
def test_formats_by_name(name: str, suffix: str | None) -> None:
    assert format_of(Path("x") / name) == suffix


@pytest.mark.parametrize(
    ("there", "read", "told"),
    [
        (
            ["a.csv", "b.tsv.gz", "README.txt", "x.json", ".hidden.csv", "c.wav"],
            ["a.csv", "b.tsv.gz"],
            "README.txt, x.json",
        ),
        (["a.json", "notes.txt", "dataset_info.json"], ["a.json"], "notes.txt"),
        (["a.txt", "c.wav"], ["a.txt"], ""),
        (["data-0.arrow", "cache-1.arrow", "state.json", "dataset_info.json"], ["data-0.arrow"], ""),
    ],
)
def test_what_a_folder_holds(
    tmp_path: Path, there: list[str], read: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in there:
        (tmp_path / name).write_bytes(b"")
    assert [file.name for file, _split in data_files(tmp_path)] == read
    assert capsys.readouterr().err.endswith(f"in other formats: {told}\n" if told else "")


def test_splits_by_name(tmp_path: Path) -> None:
    names = ["dev.csv", "test-00000-of-00001.parquet", "train/metadata.csv", "Validation/a.csv", "all.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = {file.relative_to(tmp_path).as_posix(): split for file, split in data_files(tmp_path)}
    assert [found[name] for name in names] == ["validation", "test", "train", "validation", None]


def test_texts_beside_clips_are_no_data_alone(tmp_path: Path) -> None:
    for name in ("a.txt", "a.WAV", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UsageError, match=r"has 'a\.txt' beside 'a\.WAV'\. Images and clips need a table"):
        data_files(tmp_path)
