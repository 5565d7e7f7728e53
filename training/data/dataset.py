"""Data sets: the starter data, or anyone's Parquet, JSONL, CSV or `datasets` folder, checked, in one shape."""

import hashlib
from collections.abc import Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq

from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import atomic_folder
from kauli.models.languages import check_tag, display_name
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.training.data import starter
from kauli.training.data.groups import short_hash
from kauli.training.data.imports import SUFFIXES, import_rows
from kauli.training.data.schema import SCHEMA, write_parquet
from kauli.training.data.synthetic_speech import ESPEAK, espeak_files
from kauli.training.data.topics import TOPICS, topic_files

SPLITS = ("train", "validation", "test")
MEDIA = ("image", "audio")
PLAIN_COLUMNS = tuple(name for name in SCHEMA.names if name not in MEDIA)


class Dataset:
    """Rows of the one SCHEMA in Parquet files under `folder`, read column by column when asked for."""

    def __init__(self, name: str, folder: Path, paths: Sequence[Path], languages: Sequence[str]) -> None:
        self.name = name
        self.folder = folder
        self.languages = tuple(languages)
        self._paths = tuple(paths)

    def rows(
        self,
        split: str | None = None,
        languages: Collection[str] | None = None,
        columns: Sequence[str] = PLAIN_COLUMNS,
    ) -> list[dict[str, Any]]:
        """Rows of a split (None: all) in the order of the files; without image and audio unless `columns` names them.

        `languages` narrows to some of the data set's own; English, which the starter data always has, may be named
        though it was not asked for when loading.
        """
        if split is not None and split not in SPLITS:
            raise UsageError(f"unknown split '{split}': train, validation or test.{nearest(split, SPLITS)}")
        wanted = {check_tag(language) for language in (languages if languages is not None else self.languages)}
        read = list(dict.fromkeys([*columns, "language", "split"]))
        found = []
        for path in self._paths:
            filters = [("language", "in", sorted(wanted))] + ([("split", "=", split)] if split else [])
            for row in pq.read_table(path, columns=read, filters=filters).to_pylist():
                found.append({column: row[column] for column in columns})
        return found

    def count(self, split: str | None = None) -> int:
        """The number of rows of the data set's languages in a split, or in all."""
        return len(self.rows(split, columns=["id"]))

    @cached_property
    def sha256(self) -> str:
        """A hash over everything in the data set's languages, whatever the order of rows and the layout of files."""
        hashes = []
        for row in self.rows(columns=SCHEMA.names):
            digest = hashlib.sha256()
            for name in SCHEMA.names:
                value = row[name]
                part = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(len(part).to_bytes(8, "big") + part)
            hashes.append(digest.digest())
        return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def load_data(name: str, languages: Sequence[str] | None = None) -> Dataset:
    """A data set in the given languages (None: all that it has), by its name or a path or URI.

    The names are `starter`, `starter-topics` and `starter-espeak`, whose missing files are built. Anything else is
    checked row by row first: what is wrong with it is one `UsageError` that lists up to ten problems with their row
    numbers.
    """
    wanted = None if languages is None else list(dict.fromkeys(check_tag(language) for language in languages))
    if name == "starter":
        return _load_starter(wanted)
    if name == TOPICS:
        return Dataset(name, *topic_files(wanted))
    if name == ESPEAK:
        return Dataset(name, *espeak_files(wanted))
    path = _local_copy(name)
    own = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if own and all(file.suffix == ".parquet" and starter.is_starter_file(file) for file in own):
        return _narrowed(name, path if path.is_dir() else path.parent, own, wanted)  # `kauli data build --out DIR`
    only = wanted[0] if wanted and len(wanted) == 1 else None  # rows without a language are in the one asked for
    return _narrowed(name, *_imported(path, only), wanted)


def _load_starter(languages: list[str] | None) -> Dataset:
    folder = starter.starter_folder()
    if languages is None:
        languages = sorted(path.stem for path in folder.glob("*.parquet"))
        if not languages:
            raise UsageError("no starter data is built yet: run `kauli data build --languages sw`.")
    if not starter.ready(languages, folder):
        starter.build(languages)
    paths = [folder / f"{language}.parquet" for language in dict.fromkeys([*languages, starter.PIVOT])]
    return Dataset("starter", folder, paths, languages)


def _narrowed(name: str, folder: Path, paths: list[Path], languages: list[str] | None) -> Dataset:
    there = sorted({tag for path in paths for tag in pq.read_table(path, columns=["language"])["language"].to_pylist()})
    missing = [language for language in languages or [] if language not in there]
    if missing:
        listed = ", ".join(f"{tag} ({display_name(tag)})" for tag in missing)
        raise UsageError(f"{name} has no rows in {listed}: it has {', '.join(there)}.{nearest(missing[0], there)}")
    return Dataset(name, folder, paths, languages or there)


def _imported(path: Path, language: str | None) -> tuple[Path, list[Path]]:
    """The folder and files of foreign data, checked and written in our shape under the hash of its rows."""
    rows = import_rows(path, language)
    parts = (f"{key}={value!r}" for row in rows for key, value in row.items())
    folder = kauli_home() / "data" / "imported" / short_hash(*parts)
    target = folder / "data.parquet"
    if not target.is_file():
        write_parquet(rows, target)
    return folder, [target]


def _local_copy(name: str) -> Path:
    """The data on this machine: a path as it is, a URI downloaded once per version of it."""
    if "://" not in name:
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(
                f"no data at '{name}': give `starter`, or a file or folder of {', '.join(SUFFIXES)}."
                f"{nearest(name, ['starter', TOPICS, ESPEAK])}"
            )
        return path
    try:
        filesystem, remote = fsspec.core.url_to_fs(name)
        if not filesystem.exists(remote):
            raise UsageError(f"no data at '{name}': nothing is there.")
        found = filesystem.find(remote, detail=True) or {remote: filesystem.info(remote)}
        versions = sorted(
            f"{key} {info.get('size')} {info.get('ETag') or info.get('mtime')}" for key, info in found.items()
        )
        folder = kauli_home() / "data" / "remote" / short_hash(name, *versions)
        if not folder.exists():
            note(f"copying {name}")
            with atomic_folder(folder) as partial:
                for key in found:
                    target = partial / (key.removeprefix(remote.rstrip("/")).lstrip("/") or Path(key).name)
                    if ".." in target.parts:
                        raise KauliError(f"{name} holds '{key}', which leads out of its folder.")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    filesystem.get_file(key, str(target))
    except KauliError:
        raise
    except Exception as error:  # each kind of store has errors of its own
        raise KauliError(f"could not read {name}: {error}") from error
    return folder / Path(remote).name if list(found) == [remote] else folder
