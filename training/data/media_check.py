"""Every image and audio clip of a data set, opened once: which can be used, and what they are.

What is known of a file lies under `<home>/cache/media.sqlite` by the hash of its content, so that a second look, or the
training after a first, decodes nothing. What could not be opened is not kept: another version may read it.
"""

import hashlib
import json
import os
import sqlite3
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kauli.models.errors import KauliError, MediaError
from kauli.models.media.decode import content_key, decode_audio, decode_image
from kauli.models.paths import kauli_home
from kauli.models.progress import bar
from kauli.training.data.dataset import Dataset

FORMAT = 1
"""Increase it when decoding gives other sizes or samples."""
QUIET = 0.01
"""The highest sample, of full scale, of a clip in which hardly anyone speaks."""
_THREADS = min(4, len(os.sched_getaffinity(0)))
_AT_ONCE = 256  # facts that are written at once: what a killed process loses at most
_WAITING = 2 * _THREADS  # files that are read and not decoded yet, of up to 25 MiB each


@dataclass(frozen=True, slots=True)
class MediaFacts:
    """What an image or a clip is; None where its kind has no such thing, or where it cannot be opened."""

    key: str
    """SHA-256 of the file."""
    reason: str | None = None
    """Why it cannot be used; None where it can."""
    width: int | None = None
    height: int | None = None
    """Pixels, upright."""
    seconds: float | None = None
    num_samples: int | None = None
    """At 16 kHz."""
    samples_sha256: str | None = None
    """Of the samples at 16 kHz."""
    rate: int | None = None
    """Samples a second in the file."""
    channels: int | None = None
    peak: float | None = None
    """The highest sample, of full scale."""


def media_facts(
    dataset: Dataset, column: str, split: str | None = None, languages: Sequence[str] | None = None
) -> dict[str, MediaFacts]:
    """Id -> what is in `column` ("image" or "audio") of each row that has one, in the order of the rows.

    Files are decoded in a few threads, each content once on a machine; only some files are in memory at a time.
    """
    keys: dict[str, str] = {}
    found: dict[str, MediaFacts] = {}
    waiting: dict[str, Future[MediaFacts]] = {}
    with _cache(column) as cache, ThreadPoolExecutor(_THREADS) as pool, ExitStack() as stack:
        advance: Callable[..., None] | None = None
        for row in dataset.iter_rows(split, languages, ["id", column]):
            if not row[column]:
                continue
            advance = advance or stack.enter_context(bar(f"Opening {column}", None))
            advance()
            key = keys[row["id"]] = content_key(row[column])
            if key in found or key in waiting:
                continue
            if known := cache.get(key):
                found[key] = known
            else:
                waiting[key] = pool.submit(_OPEN[column], key, row[column])
            if len(waiting) > _WAITING:
                _finish(next(iter(waiting)), waiting, found, cache)
        for key in list(waiting):
            _finish(key, waiting, found, cache)
    return {one: found[key] for one, key in keys.items()}


def media_faults(
    dataset: Dataset, column: str, split: str | None = None, languages: Sequence[str] | None = None
) -> dict[str, str]:
    """Id -> why the row's image or clip cannot be used, for the rows where that is so."""
    facts = media_facts(dataset, column, split, languages)
    return {one: found.reason for one, found in facts.items() if found.reason is not None}


def _image_facts(key: str, content: bytes) -> MediaFacts:
    try:
        width, height = decode_image(content).size
    except MediaError as error:
        return MediaFacts(key, str(error))
    return MediaFacts(key, width=width, height=height)


def _audio_facts(key: str, content: bytes) -> MediaFacts:
    try:
        audio = decode_audio(content)
    except MediaError as error:
        return MediaFacts(key, str(error))
    return MediaFacts(
        key, seconds=audio.seconds, num_samples=len(audio.samples),
        samples_sha256=hashlib.sha256(audio.samples.tobytes()).hexdigest(), rate=audio.rate, channels=audio.channels,
        peak=float(np.abs(audio.samples).max()),
    )  # fmt: skip


_OPEN = {"image": _image_facts, "audio": _audio_facts}


def _finish(
    key: str, waiting: dict[str, Future[MediaFacts]], found: dict[str, MediaFacts], cache: "_Cache"
) -> None:
    found[key] = waiting.pop(key).result()
    if found[key].reason is None:
        cache.put(found[key])


class _Cache:
    """What is known of files of one kind. Writes are collected: other processes write between them."""

    def __init__(self, connection: sqlite3.Connection, column: str) -> None:
        self._connection, self._column = connection, column
        self._new: list[tuple[str, str]] = []

    def get(self, key: str) -> MediaFacts | None:
        known = self._connection.execute("SELECT facts FROM media WHERE key = ?", (f"{self._column} {key}",)).fetchone()
        return known and MediaFacts(key, **json.loads(known[0]))

    def put(self, facts: MediaFacts) -> None:
        told = {name: value for name, value in asdict(facts).items() if value is not None and name != "key"}
        self._new.append((f"{self._column} {facts.key}", json.dumps(told)))
        if len(self._new) >= _AT_ONCE:
            self.write()

    def write(self) -> None:
        with self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO media VALUES (?, ?)", self._new)
        self._new.clear()


@contextmanager
def _cache(column: str) -> Iterator[_Cache]:
    """What was found until an error or an interruption is kept."""
    path = kauli_home() / "cache" / f"media-{FORMAT}.sqlite"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS media (key TEXT PRIMARY KEY, facts TEXT NOT NULL)")
            cache = _Cache(connection, column)
            try:
                yield cache
            finally:
                cache.write()
    except sqlite3.Error as error:
        raise KauliError(f"{path}, a cache, can't be used ({error}): delete it.") from error
