"""The tables of memories, on LanceDB: `<storage>/memory/<tenant>/<name>.lance`.

LanceDB is embedded, and keeps tables of texts and vectors in a folder or in an object store alike. Each change is one
atomic commit of a new version: readers see all of it or none, writers in several processes need no lock, and a reader
learns in 0.1 ms (by the name of the newest version) whether something changed, so that every replica answers from the
newest state. SQLite can't be on S3; other vector databases need a server. LanceDB's own search is not used: with 10,000
pairs its full text took 6 to 9 ms a request and its vectors 10 to 16 ms, on 2 cores, against 1.2 ms for both in RAM
(`kauli.models.text.memory_index`).
"""

import os
import re
import secrets
import time
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from kauli.models.adapters.store import open_store
from kauli.models.errors import KauliError, UsageError
from kauli.models.progress import note

TEXTS = ("id", "key", "kind", "source_language", "target_language", "source", "target", "origin", "added")
"""Columns. `key` is unique: what is added with a key that is there replaces the row."""
VECTORS = ("source_vector", "target_vector")
"""Columns, float16."""
COMPACTED_EVERY = 32
"""Versions: each small commit is a file to read."""
CLAIM_SECONDS = 10.0
"""A process that makes a table has so long."""
KEPT_VERSIONS = timedelta(minutes=10)
"""How long a version stays that a reader may still hold."""
_BACKGROUND = ThreadPoolExecutor(1, "memory-compaction")


class MissingError(UsageError):
    """There is no such table, or it was deleted."""


class Table:
    """One table. Several threads, processes and machines may use it at once."""

    def __init__(self, table: Any, name: str) -> None:
        """Use `Tables`."""
        self._table, self._name = table, name

    def newest(self) -> tuple[str, int]:
        """Go to the newest version, by one request to an object store; what is read is this version from now on.

        (what tells the table from one of the same name that was deleted, version). Raises MissingError where the table
        was deleted.
        """
        with explained(self._name):
            self._table.checkout_latest()
            return self._metadata["birth"], int(self._table.version)

    @property
    def embedder(self) -> str:
        """The SHA-256 of the base that the vectors are from."""
        return self._metadata["embedder"]

    @property
    def dim(self) -> int:
        """The width of the vectors."""
        return int(self._table.schema.field(VECTORS[0]).type.list_size)

    def read(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """Rows of the newest version; `where` is in SQL."""
        with explained(self._name):
            query = self._table.search().select(list(columns))
            return (query if where is None else query.where(where)).to_arrow()

    def put(self, content: pa.Table) -> int:
        """Add rows, or replace those of the same key, in one commit; its version."""
        with explained(self._name):
            merge = self._table.merge_insert("key").when_matched_update_all().when_not_matched_insert_all()
            version = int(merge.execute(content).version)
        self._compact_when_due(version)
        return version

    def delete(self, ids: Sequence[str]) -> tuple[int, int]:
        """Delete rows in one commit: (how many there were, its version)."""
        with explained(self._name):
            done = self._table.delete(any_of(ids))
        self._compact_when_due(int(done.version))
        return int(done.num_deleted_rows), int(done.version)

    def content(self, rows: Sequence[dict[str, str]], vectors: np.ndarray) -> pa.Table:
        """Rows as `put` takes them: their texts, and (2, N, dim) the embeddings of sources and targets."""
        columns: dict[str, Any] = {column: [row[column] for row in rows] for column in TEXTS}
        for column, side in zip(VECTORS, vectors.astype(np.float16), strict=True):
            columns[column] = pa.FixedSizeListArray.from_arrays(pa.array(side.ravel()), side.shape[1])
        return pa.table(columns, schema=self._table.schema)

    @property
    def _metadata(self) -> dict[str, str]:
        return {key.decode(): value.decode() for key, value in (self._table.schema.metadata or {}).items()}

    def _compact_when_due(self, version: int) -> None:
        # Every version has one writer, in whatever process: so one of them compacts
        if version % COMPACTED_EVERY == 0:
            _BACKGROUND.submit(self._compact)

    def _compact(self) -> None:
        for _ in range(5):
            try:
                self._table.optimize(cleanup_older_than=KEPT_VERSIONS)
            except RuntimeError as error:
                if "commit conflict" not in str(error):
                    note(f"{self._name} can't be compacted: {_reason(error)}")
                    return
                time.sleep(0.1)  # a writer was faster, which is as it should be
            else:
                return


class Tables:
    """The tables of one storage."""

    def __init__(self, storage: str) -> None:
        """`storage` as for the registry: a folder, or a URI that LanceDB knows (s3://, gs://, az://)."""
        self._store = open_store(storage, "memory")
        local = self._store.local("")
        self._root = f"{storage.rstrip('/')}/memory" if local is None else str(local)

    def names(self, tenant: str) -> list[str]:
        """The tables of a tenant, sorted."""
        folder = self._store.local(tenant)
        if folder is not None and not folder.is_dir():  # connecting would make it
            return []
        database, names, page = self._connect(tenant), list[str](), None
        with explained(f"the folder {self._root}"):
            while True:
                answer = database.list_tables(page_token=page)
                names += answer.tables
                page = answer.page_token
                if not page:
                    return sorted(names)

    def open(self, tenant: str, name: str) -> Table:
        """A table; MissingError where there is none."""
        if name not in self.names(tenant):
            raise MissingError(f"there is no memory '{name}'")
        with explained(f"the memory '{name}'"):
            return Table(self._connect(tenant).open_table(name), f"the memory '{name}'")

    def create(self, tenant: str, name: str, dim: int, embedder: str) -> Table:
        """A table for vectors of the width `dim`; the one that is there, where another process was faster."""
        birth = secrets.token_hex(8)
        # Unless LanceDB knows the key, of two writers that add one at once both succeed
        unique = {"lance-schema:unenforced-primary-key": "true"}
        texts = [
            pa.field(column, pa.string(), nullable=False, metadata=unique if column == "key" else None)
            for column in TEXTS
        ]
        vectors = [pa.field(column, pa.list_(pa.float16(), dim)) for column in VECTORS]
        schema = pa.schema([*texts, *vectors], metadata={"birth": birth, "embedder": embedder})
        # Of two processes that make a table at once, LanceDB lets the second one overwrite the first one's
        claim, deadline = f"{tenant}/{name}.claim", time.monotonic() + CLAIM_SECONDS
        while not self._store.create(claim, birth.encode()):
            if time.monotonic() > deadline:  # whoever made it was killed
                self._store.delete(claim)
            time.sleep(0.02)
        try:
            if name in self.names(tenant):
                return self.open(tenant, name)
            with explained(f"the memory '{name}'"):
                return Table(self._connect(tenant).create_table(name, schema=schema), f"the memory '{name}'")
        finally:
            self._store.delete(claim)

    def drop(self, tenant: str, name: str) -> None:
        """Delete a table with all its versions."""
        with explained(f"the memory '{name}'"):
            self._connect(tenant).drop_table(name)

    def _connect(self, tenant: str) -> Any:
        os.environ.setdefault("LANCEDB_LOG", "error")  # a compaction that gives way to a writer is no news
        import lancedb

        # Test servers and clusters' own stores speak plain HTTP; which endpoint it is, the environment says
        options = {"allow_http": "true"} if self._root.startswith("s3://") else None
        with explained(f"the folder {self._root}"):
            return lancedb.connect(f"{self._root}/{tenant}", storage_options=options)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Errors of LanceDB in our words."""
    try:
        yield
    except KauliError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        if re.search("not found", str(error), re.IGNORECASE):
            raise MissingError(f"{what} was deleted meanwhile") from error
        raise KauliError(f"{what} can't be read or written: {_reason(error)}") from error


def any_of(ids: Sequence[str]) -> str:
    """A filter for rows; `ids` are our own, of letters and digits."""
    return "id IN ({})".format(", ".join(f"'{id}'" for id in ids))


def chosen(content: pa.Table, column: str, values: Container[str]) -> pa.Table:
    """The rows whose value in a column is one of these."""
    return content.filter(pa.array([value in values for value in content[column].to_pylist()], pa.bool_()))


def matrix(column: pa.ChunkedArray) -> np.ndarray:
    """(N, dim) float32: the vectors of a column that was read."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(parts).astype(np.float32).reshape(len(column), -1)


def _reason(error: Exception) -> str:
    """The message without the place in LanceDB's sources."""
    return re.sub(r",? \S+\.rs:\d+:\d+", "", str(error))[:300] or type(error).__name__
