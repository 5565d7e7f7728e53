"""Data sets, built here or imported from the user's files, read from Parquet files of one schema."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.files import atomic_folder
from kauli.models.languages import check_tag, display_name
from kauli.models.paths import kauli_home
from kauli.models.progress import note
from kauli.training.data import starter
from kauli.training.data.data_files import READABLE
from kauli.training.data.groups import short_hash
from kauli.training.data.imports import import_data, read_places
from kauli.training.data.options import DataOptions
from kauli.training.data.schema import LATER, MEDIA, PLAIN_COLUMNS, SCHEMA
from kauli.training.data.synthetic_speech import ESPEAK, espeak_files
from kauli.training.data.topics import TOPICS, topic_files

SPLITS = ("train", "validation", "test")
_BATCH_ROWS, _BATCH_BYTES = 1024, 4 << 20  # decoded at once, at most


@dataclass(frozen=True)
class DatasetReference:
    """A data set by name and content, small enough to travel to another process, which reads the files itself."""

    name: str
    languages: tuple[str, ...]
    sha256: str
    paths: tuple[Path, ...]
    """The Parquet files on the machine that made the reference; another one loads the data set by its name."""
    versions: tuple[tuple[int, int, int], ...]
    """Inode, size and time of the files: where they are the same, nothing needs to be hashed again."""
    options: DataOptions
    """With which another machine loads the data set by its name."""


class Dataset:
    """Rows of the one SCHEMA in Parquet files, read when asked for and never held."""

    def __init__(
        self, name: str, paths: Sequence[Path], languages: Sequence[str], options: DataOptions | None = None
    ) -> None:
        self.name = name
        self.languages = tuple(languages)
        self.options = options or DataOptions()
        self._paths = tuple(paths)
        self._versions = tuple(map(_version, self._paths))

    def __getstate__(self) -> dict[str, Any]:
        # Each process builds its own index
        return {key: value for key, value in vars(self).items() if key not in ("_index", "_places")}

    def rows(
        self, split: str | None = None, languages: Collection[str] | None = None, columns: Sequence[str] = PLAIN_COLUMNS
    ) -> list[dict[str, Any]]:
        """All rows of `iter_rows` at once."""
        return list(self.iter_rows(split, languages, columns))

    def iter_rows(
        self, split: str | None = None, languages: Collection[str] | None = None, columns: Sequence[str] = PLAIN_COLUMNS
    ) -> Iterator[dict[str, Any]]:
        """Rows of a split (None: all) in the order of the files, a few in memory at a time.

        Image and audio are read only if `columns` names them. `languages` selects some of the data set's languages;
        English, which is always built with the starter data, may be named although it was not asked for when loading.
        """
        if split is not None and split not in SPLITS:
            raise UsageError(f"unknown split '{split}': train, validation or test.{nearest(split, SPLITS)}")
        wanted = sorted({check_tag(language) for language in (languages if languages is not None else self.languages)})
        return self._read(split, wanted, list(dict.fromkeys(columns)))

    def _read(self, split: str | None, languages: list[str], columns: list[str]) -> Iterator[dict[str, Any]]:
        fold = self.options.fold

        def selected(batch: pa.RecordBatch | pa.Table) -> Any:
            chosen = pc.is_in(batch["language"], pa.array(languages, pa.string()))
            if split is None:
                return chosen
            found = pa.array([split_of(one, *fold) for one in batch["group"].to_pylist()]) if fold else batch["split"]
            return pc.and_(chosen, pc.equal(found, split))

        keys = ["language", "group" if fold else "split"]
        read = list(dict.fromkeys([*columns, *keys]))
        for path in self._paths:
            with pq.ParquetFile(path, buffer_size=1 << 20) as file:  # buffered: not a whole column of a group at once
                for group in range(file.num_row_groups):
                    if not pc.any(selected(file.read_row_group(group, keys))).as_py():
                        continue
                    size = _BATCH_ROWS
                    if set(columns) & set(MEDIA):
                        content = file.metadata.row_group(group)
                        size = min(size, 1 + _BATCH_BYTES * content.num_rows // content.total_byte_size)
                    # Files of an earlier version lack the columns that came later
                    absent = dict.fromkeys(set(columns) - set(file.schema_arrow.names))
                    there = [name for name in columns if name not in absent]
                    for batch in file.iter_batches(size, [group], read):
                        chosen = batch.filter(selected(batch))
                        groups = chosen["group"].to_pylist() if fold and "split" in columns else None
                        for place, row in enumerate(chosen.select(there).to_pylist()):
                            if groups is not None and fold is not None:
                                row["split"] = split_of(groups[place], *fold)
                            yield {**row, **absent} if absent else row

    def read_media(self, column: str, ids: Iterable[str]) -> dict[str, bytes | None]:
        """The encoded bytes of `column` ("image" or "audio") by row id, in the order of `ids`; None where it is empty.

        Reads only the row groups that hold the rows, each once. Raises `KauliError` for an unknown id, and if a
        file was replaced since the data set was loaded.
        """
        found: dict[str, bytes | None] = dict.fromkeys(ids)
        wanted: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
        for one in found:
            if one not in self._index.places:
                raise KauliError(f"data '{self.name}' has no row with the id '{one}'.")
            number, group, row = self._index.places[one]
            wanted[number, group].append((row, one))
        for (number, group), places in sorted(wanted.items()):
            path = self._paths[number]
            if _version(path) != self._versions[number]:
                raise KauliError(f"{path} was replaced while data '{self.name}' was in use: start again.")
            with pq.ParquetFile(path, metadata=self._index.metadata[number]) as file:
                values = file.read_row_group(group, [column])[column]
            for row, one in places:
                found[one] = values[row].as_py()
        return found

    def place(self, one: str) -> str:
        """Where the row with the id `one` was read: "mine.csv line 12"; the id itself for data that is built here."""
        return self._places.get(one, one)

    @cached_property
    def _places(self) -> dict[str, str]:
        return {one: place for path in self._paths for one, place in read_places(path).items()}

    @cached_property
    def _index(self) -> "_Index":
        index = _Index({}, [])
        for number, path in enumerate(self._paths):
            with pq.ParquetFile(path) as file:
                index.metadata.append(file.metadata)
                for group in range(file.num_row_groups):
                    for row, one in enumerate(file.read_row_group(group, ["id"])["id"].to_pylist()):
                        index.places.setdefault(one, (number, group, row))
        return index

    @cached_property
    def sha256(self) -> str:
        """A hash over everything in the data set's languages, whatever the order of rows and the layout of files."""
        hashes = []
        for row in self.iter_rows(columns=SCHEMA.names):
            digest = hashlib.sha256()
            for name in SCHEMA.names:
                value = row[name]
                if value is None and name in LATER:
                    continue
                part = value if isinstance(value, bytes) else repr(value).encode()
                digest.update(len(part).to_bytes(8, "big") + part)
            hashes.append(digest.digest())
        return hashlib.sha256(b"".join(sorted(hashes))).hexdigest()

    @property
    def reference(self) -> DatasetReference:
        """What `load_reference` needs to load the same rows in another process."""
        paths = tuple(path.absolute() for path in self._paths)
        return DatasetReference(self.name, self.languages, self.sha256, paths, self._versions, self.options)


@lru_cache(1 << 17)
def split_of(group: str, fold: int, folds: int) -> str:
    """The split of a group where part `fold` of `folds` is tested."""
    chance = int(hashlib.sha256(group.encode()).hexdigest()[:15], 16)
    if chance % folds == fold:
        return "test"
    return "validation" if chance // folds % 8 == 0 else "train"


@dataclass
class _Index:
    """Where each row lies: id -> (number of the file, row group, row in the group); and each file's metadata."""

    places: dict[str, tuple[int, int, int]]
    metadata: list[pq.FileMetaData]


def _version(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def load_reference(reference: DatasetReference) -> Dataset:
    """The data set of a reference: its files if they are on this machine, else loaded by its name.

    Raises `KauliError` if the content is not that of the reference.
    """
    if all(path.is_file() for path in reference.paths):
        dataset = Dataset(reference.name, reference.paths, reference.languages, reference.options)
        if tuple(map(_version, reference.paths)) == reference.versions:
            dataset.sha256 = reference.sha256
    else:
        dataset = load_data(reference.name, reference.languages, reference.options)
    if dataset.sha256 != reference.sha256:
        raise KauliError(
            f"data '{reference.name}' ({', '.join(reference.languages)}) has changed: its sha256 on this machine is "
            f"{dataset.sha256}, expected {reference.sha256}. Restore that data, or start a new run."
        )
    return dataset


BUILT: dict[str, Callable[[Sequence[str] | None], tuple[list[Path], Sequence[str]]]] = {
    starter.STARTER: starter.starter_files,
    starter.FULL: starter.full_files,
    TOPICS: topic_files,
    ESPEAK: espeak_files,
}
"""The data sets that are built here, by name: languages (None: all) -> Parquet files, languages."""


def load_data(name: str, languages: Sequence[str] | None = None, options: DataOptions | None = None) -> Dataset:
    """A data set in the given languages (None: all that it has), by a name of BUILT, or a path or URI.

    `options` say how files are read; rows without a language are in theirs, else in the one language asked for.
    Missing files of built data sets are built. Other data is checked row by row and imported; its problems are one
    `UsageError` that lists up to ten of them with their rows.
    """
    wanted = None if languages is None else list(dict.fromkeys(check_tag(language) for language in languages))
    options = options or DataOptions()
    fold = DataOptions(fold=options.fold)
    if name in BUILT:
        return Dataset(name, *BUILT[name](wanted), fold)
    path = _local_copy(name)
    own = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if own and all(file.suffix == ".parquet" and starter.is_starter_file(file) for file in own):
        return _narrowed(name, own, wanted, fold)  # `kauli data build --out DIR`
    if options.language is None and wanted and len(wanted) == 1:
        options = options.model_copy(update={"language": wanted[0]})
    imported = import_data(path, options.model_copy(update={"fold": None}))
    return _narrowed(name, [imported], wanted, options)


def _narrowed(name: str, paths: list[Path], languages: list[str] | None, options: DataOptions | None = None) -> Dataset:
    there = sorted({tag for path in paths for tag in pq.read_table(path, columns=["language"])["language"].to_pylist()})
    missing = [language for language in languages or [] if language not in there]
    if missing:
        listed = ", ".join(f"{tag} ({display_name(tag)})" for tag in missing)
        raise UsageError(f"{name} has no rows in {listed}: it has {', '.join(there)}.{nearest(missing[0], there)}")
    return Dataset(name, paths, languages or there, options)


def _local_copy(name: str) -> Path:
    """The path of the data on this machine; a URI is downloaded once for each version of its files."""
    if "://" not in name:
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(
                f"no data at '{name}': give {', '.join(BUILT)}, or a file or folder of {READABLE}."
                f"{nearest(name, BUILT)}"
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
                        raise KauliError(f"{name} holds '{key}', which is outside its folder.")
                    target.parent.mkdir(parents=True, exist_ok=True)
                    filesystem.get_file(key, str(target))
    except KauliError:
        raise
    except Exception as error:  # each kind of storage raises other errors
        raise KauliError(f"could not read {name}: {error}") from error
    return folder / Path(remote).name if list(found) == [remote] else folder
