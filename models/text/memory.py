"""Memories: confirmed pairs and a glossary, by tenant and name, that count at the next request.

What is stored is in `kauli.models.text.memory_table`, which says why it is LanceDB. To be searched it is held in RAM
(`kauli.models.text.memory_index`), and every request first asks for the newest version: rows that came are added, rows
that went are taken out. So an addition or a deletion counts at once in every process that serves the memory.
"""

import secrets
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import pyarrow as pa

from kauli.models.adapters.card import check_name
from kauli.models.errors import KauliError, UsageError, nearest
from kauli.models.languages import nfc
from kauli.models.text.memory_index import Entry, MemoryIndex, plain
from kauli.models.text.memory_pairs import Confirmed as Confirmed
from kauli.models.text.memory_pairs import Kind, rows_of, short_tag
from kauli.models.text.memory_pairs import Stored as Stored
from kauli.models.text.memory_table import TEXTS, VECTORS, MissingError, Table, Tables, any_of, chosen, matrix
from kauli.models.text.retrieval import choose, similarity
from kauli.models.text.translation import Example

MOST_PAIRS = 200_000
"""Of one memory: it is searched in RAM."""
OPEN = 32
"""Memories in RAM; of more, the one that was not used for longest is read again when it is asked."""
_EMBEDDED_AT_ONCE = 256  # pairs
_FETCHED_BY_ID = 500  # rows; more are read with the whole table


@dataclass(frozen=True)
class Match:
    """A pair that was found for a text, in the direction of the request."""

    id: str
    source: str
    target: str
    score: float
    """The fuzzy match score, 0 to 100; 100 is the same text."""
    origin: str


class Embeds(Protocol):
    """What a memory needs of `kauli.models.text.embedder.Embedder`."""

    sha256: str
    dim: int

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """(N, dim) float32, each of length 1."""


class Memories:
    """All memories of a storage. Several threads may use them at once."""

    def __init__(self, storage: str, embedder: Embeds | None) -> None:
        """`storage` as for the registry; without an embedder, memories can be listed, read and deleted."""
        self._tables, self._embedder = Tables(storage), embedder
        self._open: OrderedDict[tuple[str, str], Memory] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, tenant: str) -> list[str]:
        """The memories of a tenant, sorted."""
        return self._tables.names(check_name(tenant, "tenant"))

    def open(self, tenant: str, name: str, create: bool = False) -> "Memory":
        """A memory; UsageError where there is none of this name, unless it is to be made."""
        key = (check_name(tenant, "tenant"), check_name(name, "memory name"))
        with self._lock:
            memory = self._open.get(key)
        try:
            if memory is None:
                memory = Memory(self._tables.open(tenant, name), name, self._embedder)
            memory.check()
        except MissingError:
            if not create:
                with self._lock:
                    self._open.pop(key, None)
                names = self.names(tenant)
                raise UsageError(
                    f"there is no memory '{name}'.{nearest(name, names)} "
                    f"{'There are: ' + ', '.join(names) if names else 'There is none yet'}. "
                    f"To make it: kauli memory add {name} FILE"
                ) from None
            if self._embedder is None:
                raise KauliError("a memory can't be made without an embedder") from None
            made = self._tables.create(tenant, name, self._embedder.dim, self._embedder.sha256)
            memory = Memory(made, name, self._embedder)
            memory.check()
        with self._lock:
            self._open[key] = memory
            self._open.move_to_end(key)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)
        return memory

    def delete(self, tenant: str, name: str) -> None:
        """Delete a memory with all that it holds; UsageError where there is none."""
        self.open(tenant, name)
        self._tables.drop(tenant, name)
        with self._lock:
            self._open.pop((tenant, name), None)


class Memory:
    """Confirmed pairs and terms, which answer in both directions. Several threads may use it at once."""

    def __init__(self, table: Table, name: str, embedder: Embeds | None) -> None:
        """Use `Memories.open`."""
        self.name = name
        self._table, self._embedder = table, embedder
        self._lock = threading.RLock()
        self._state: tuple[str, int] = ("", 0)
        self._forget()

    def check(self) -> None:
        """Raise UsageError where the memory was deleted, or embeds by another base than this process."""
        self._table.newest()
        made = self._table.embedder
        if self._embedder is not None and made != self._embedder.sha256:
            raise UsageError(
                f"the memory '{self.name}' has embeddings of another base (SHA-256 {made[:12]}..., here "
                f"{self._embedder.sha256[:12]}...): export it, remove it, and add the file again"
            )

    def add(self, confirmed: Sequence[Confirmed], advance: Callable[[int], None] | None = None) -> list[str]:
        """Add pairs in one step, all or none; their ids, in the same order.

        A source that is confirmed again in the same languages replaces its older target. The same pair again changes
        nothing. `advance` is told how many more pairs are done. Raises UsageError for pairs that can't be stored,
        and for terms with two targets.
        """
        if self._embedder is None:
            raise KauliError("a memory can't learn without an embedder")
        rows = rows_of(confirmed)
        latest = {row["key"]: row for row in rows}
        with self._lock:
            self._refresh()
            before = self._state
            known = {key: self._rows[self._ids[key]] for key in latest if key in self._ids}
            if len(self._rows) + len(latest) - len(known) > MOST_PAIRS:
                raise UsageError(
                    f"the memory '{self.name}' holds {len(self._rows)} pairs, and at most {MOST_PAIRS}: "
                    f"add these {len(latest)} to another memory"
                )
        kept = {
            key: one.id
            for key, one in known.items()
            if all(getattr(one, part) == latest[key][part] for part in ("source", "target", "origin"))
        }
        new = [row for key, row in latest.items() if key not in kept]
        if advance is not None:
            advance(len(rows) - len(new))
        if new:
            now, when = time.time_ns(), datetime.now(UTC).isoformat(timespec="milliseconds")
            for place, row in enumerate(new):
                row |= {"id": f"{now + place:016x}{secrets.token_hex(4)}", "added": when}
            content = self._table.content(new, _embedded(new, self._embedder, advance))
            version = self._table.put(content)
            self._follow(before, version, [one.id for key, one in known.items() if key not in kept], content)
        return [kept.get(row["key"]) or latest[row["key"]]["id"] for row in rows]

    def remove(self, ids: Sequence[str]) -> int:
        """Remove pairs; how many there were. Unknown ids are passed over."""
        with self._lock:
            self._refresh()
            before = self._state
            known = [id for id in dict.fromkeys(ids) if id in self._rows]
        if not known:
            return 0
        count, version = self._table.delete(known)
        self._follow(before, version, known, None)
        return count

    def pairs(
        self,
        source_language: str | None = None,
        target_language: str | None = None,
        kind: Kind | None = None,
        containing: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Stored]:
        """Pairs and terms as they were confirmed, the oldest first.

        `containing` is a part of the source or the target, whatever its case.
        """
        source = None if source_language is None else short_tag(source_language)
        target = None if target_language is None else short_tag(target_language)
        part = None if containing is None else nfc(containing).casefold()
        with self._lock:
            self._refresh()
            rows = sorted(self._rows.values(), key=lambda row: row.id)
        found = [
            row
            for row in rows
            if (source is None or row.source_language == source)
            and (target is None or row.target_language == target)
            and (kind is None or row.kind == kind)
            and (part is None or part in row.source.casefold() or part in row.target.casefold())
        ]
        return found[offset:] if limit is None else found[offset : offset + limit]

    def languages(self) -> dict[tuple[str, str], int]:
        """How many pairs and terms it holds, by (source, target) language as they were confirmed."""
        with self._lock:
            self._refresh()
            return dict(+self._languages)

    def state(self) -> str:
        """What differs after every change of what it holds."""
        with self._lock:
            self._refresh()
            return "-".join(map(str, self._state))

    def check_languages(self, source: str, target: str) -> None:
        """Raise UsageError where the memory holds pairs, and none of these two languages."""
        held, asked = self.languages(), (short_tag(source), short_tag(target))
        if held and asked not in held and asked[::-1] not in held:
            pairs = ", ".join(f"{one} - {other} ({count})" for (one, other), count in sorted(held.items()))
            raise UsageError(
                f"the memory '{self.name}' has nothing in {asked[0]} - {asked[1]}, only {pairs}: "
                "choose another memory, or add pairs of these languages to it"
            )

    def search(self, text: str, source: str, target: str, limit: int) -> list[Match]:
        """At most `limit` pairs for a text, the best first: the same text, then the most useful as examples.

        Args:
            text: to be translated.
            source: BCP-47 tag of its language.
            target: BCP-47 tag of the language to translate into.
            limit: how many are wanted.
        """
        with self._lock:
            index = self._index(short_tag(source), short_tag(target))
        if not index or limit < 1 or not text.strip() or self._embedder is None:
            return []
        vector = self._embedder.embed([text])[0]
        with self._lock:
            same, near = index.same(text)[:limit], index.near(text, vector)
        others = [one for one in near if plain(one.source) != plain(text)]
        found = [*same, *(one.key for one in choose(nfc(text), vector, others, limit - len(same)))]
        return [Match(one.id, one.source, one.target, similarity(text, one.source), one.origin) for one in found]

    def terms(self, text: str, source: str, target: str) -> list[Example]:
        """The glossary's terms in a text, in its order; see `kauli.models.text.memory_terms`."""
        with self._lock:
            index = self._index(short_tag(source), short_tag(target))
            return [Example(one.source, one.target) for one in index.terms(text)] if index is not None else []

    # What of the table is in RAM; what follows is called with the lock held

    def _forget(self) -> None:
        self._rows: dict[str, Stored] = {}
        self._ids: dict[str, str] = {}  # by key
        self._keys: dict[str, str] = {}  # by id
        self._languages: Counter[tuple[str, str]] = Counter()
        self._indexes: dict[tuple[str, str], MemoryIndex] = {}

    def _refresh(self) -> None:
        """Bring the rows and indexes up to the newest version."""
        state = self._table.newest()
        if state == self._state:
            return
        if state[0] != self._state[0]:  # deleted and made again
            self._forget()
        ids = self._table.read(["id"])["id"].to_pylist()
        self._drop(self._rows.keys() - set(ids))
        new = [id for id in ids if id not in self._rows]
        if new:
            columns = [*TEXTS, *(VECTORS if self._indexes else ())]
            content = self._table.read(columns, any_of(new) if len(new) <= _FETCHED_BY_ID else None)
            self._take(chosen(content, "id", set(new)))
        self._state = state

    def _follow(self, before: tuple[str, int], version: int, gone: Sequence[str], content: pa.Table | None) -> None:
        """Do to the rows in RAM what this process did to the table, where nobody else wrote since `before`."""
        with self._lock:
            if self._state == before and version == before[1] + 1:  # else the next request reads what changed
                self._drop(gone)
                if content is not None:
                    self._take(content)
                self._state = (before[0], version)

    def _drop(self, ids: Iterable[str]) -> None:
        gone = list(ids)
        for id in gone:
            row = self._rows.pop(id)
            del self._ids[self._keys.pop(id)]
            self._languages[row.source_language, row.target_language] -= 1
        for index in self._indexes.values():
            index.remove(gone)

    def _take(self, content: pa.Table) -> None:
        for row in content.select(TEXTS).to_pylist():
            key = row.pop("key")
            self._ids[key], self._keys[row["id"]], self._rows[row["id"]] = row["id"], key, Stored(**row)
            self._languages[row["source_language"], row["target_language"]] += 1
        for languages, index in self._indexes.items():
            _fill(index, content, *languages)

    def _index(self, source: str, target: str) -> MemoryIndex | None:
        """The up-to-date index of a direction; None where the memory has nothing in these languages."""
        self._refresh()
        index = self._indexes.get((source, target))
        if index is not None and not index.worn:
            return index
        if not self._languages[source, target] and not self._languages[target, source]:
            return None
        tags = f"('{source}', '{target}')"
        content = self._table.read([*TEXTS, *VECTORS], f"source_language IN {tags} AND target_language IN {tags}")
        index = self._indexes[source, target] = MemoryIndex(self._table.dim)
        # What another process added since the rows were read comes with the next refresh
        _fill(index, chosen(content, "id", self._rows.keys()), source, target)
        return index


def _fill(index: MemoryIndex, content: pa.Table, source: str, target: str) -> None:
    """Add the rows of `content` that are in the two languages, each turned so that it leads from `source`."""
    for own, vectors, names in (
        ((source, target), VECTORS[0], ("source", "target")),
        ((target, source), VECTORS[1], ("target", "source")),
    ):
        rows = chosen(chosen(content, "source_language", {own[0]}), "target_language", {own[1]})
        if rows.num_rows:
            texts = rows.select(["id", "kind", "origin", "source", "target"]).to_pylist()
            entries = [Entry(row["id"], row[names[0]], row[names[1]], row["origin"]) for row in texts]
            pairs = [at for at, row in enumerate(texts) if row["kind"] == "pair"]
            index.add([entries[at] for at in pairs], matrix(rows[vectors])[pairs])
            index.add_terms(entries[at] for at, row in enumerate(texts) if row["kind"] == "term")


def _embedded(rows: Sequence[dict[str, str]], embedder: Embeds, advance: Callable[[int], None] | None) -> np.ndarray:
    """(2, N, dim): sources and targets; zeros for terms, which are found by their words."""
    sides = np.zeros((2, len(rows), embedder.dim), dtype=np.float32)
    for start in range(0, len(rows), _EMBEDDED_AT_ONCE):
        part = range(start, min(start + _EMBEDDED_AT_ONCE, len(rows)))
        pairs = [at for at in part if rows[at]["kind"] == "pair"]
        texts = [rows[at][side] for side in ("source", "target") for at in pairs]
        if texts:
            sides[:, pairs] = embedder.embed(texts).reshape(2, len(pairs), -1)
        if advance is not None:
            advance(len(part))
    return sides
