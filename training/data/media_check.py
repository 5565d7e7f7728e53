"""Every image and audio clip of a data set, opened once: what they are, and which cannot be used.

What is known of a file lies under `<home>/cache/media.sqlite` by the hash of its content, so that a second look, or the
training after a first, decodes nothing. What could not be opened is not kept: another version may read it.
"""

import hashlib
import json
import math
import os
import sqlite3
from collections import Counter, defaultdict
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
from kauli.training.data.problems import Problem, excerpt
from kauli.training.data.schema import MEDIA
from kauli.training.data.starter_images import FASTEST_SPEECH

FORMAT = 1
"""Increase it when decoding gives other sizes or samples."""
LONGEST = 30.0
"""Seconds of one example: what Whisper takes at once."""
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
    warning: str | None = None
    """What its decoder says of a clip that can be used: cut off, clipped."""


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
        for number, row in enumerate(dataset.iter_rows(split, languages, ["id", column]), 1):
            if advance:
                advance()
            if not row[column]:
                continue
            if advance is None:  # data without media draw no bar
                total = sum(1 for _ in dataset.iter_rows(split, languages, ["id"]))
                advance = stack.enter_context(bar(f"Opening {column} files", total))
                advance(number)
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


def check_media(
    dataset: Dataset, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[Problem], dict[str, dict[str, MediaFacts]]]:
    """What `kauli data check` tells of images and audio: by language, what is wrong, and all facts by column and id.

    `rows` are those of the data set, with the plain columns.
    """
    by_language: dict[str, dict[str, Any]] = defaultdict(dict)
    problems: list[Problem] = []
    all_facts = {column: media_facts(dataset, column) for column in MEDIA}
    for column, facts in all_facts.items():
        with_media = [(row, facts[row["id"]]) for row in rows if row["id"] in facts]
        for tag in sorted({row["language"] for row, _ in with_media}):
            of_language = [(row, found) for row, found in with_media if row["language"] == tag]
            readable = [found for _, found in of_language if found.reason is None]
            by_language[tag][column] = {
                "files": len({found.key for _, found in of_language}),
                "rows": dict(Counter(row["split"] for row, _ in of_language)),
                "unreadable": len(of_language) - len(readable),
                **(_SUMMARY[column](readable) if readable else {}),
            }
        for kind, what, shown in _PROBLEMS[column]:
            examples = [
                {"place": dataset.place(row["id"]), "shown": text}
                for row, found in with_media
                if (text := shown(found, row["text"] or ""))
            ]
            problems += [{"kind": kind, "what": what, "rows": len(examples), "examples": examples}] * bool(examples)
    return by_language, problems, all_facts


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
        peak=float(np.abs(audio.samples).max()), warning=" ".join(audio.warnings) or None,
    )  # fmt: skip


_OPEN = {"image": _image_facts, "audio": _audio_facts}


def _image_summary(images: Sequence[MediaFacts]) -> dict[str, Any]:
    sizes = sorted(((one.width or 0, one.height or 0) for one in images), key=lambda size: (size[0] * size[1], size))
    return {"sizes": {"median": sizes[len(sizes) // 2], "smallest": sizes[0], "largest": sizes[-1]}}


def _audio_summary(clips: Sequence[MediaFacts]) -> dict[str, Any]:
    seconds = sorted(one.seconds or 0.0 for one in clips)
    return {
        "hours": round(sum(seconds) / 3600, 4),
        "seconds": {"median": round(seconds[len(seconds) // 2], 2), "longest": round(seconds[-1], 2)},
        "rates": dict(Counter(str(one.rate or "unknown") for one in clips).most_common()),
        "channels": dict(Counter(str(one.channels or "unknown") for one in clips).most_common()),
    }


_SUMMARY = {"image": _image_summary, "audio": _audio_summary}


def _quiet(clip: MediaFacts, text: str) -> str:
    return f"its peak is {clip.peak:.2%} of full scale" if (clip.peak or 1.0) < QUIET else ""


def _too_fast(clip: MediaFacts, text: str) -> str:
    seconds = clip.seconds or math.inf
    return f"{len(text)} characters in {seconds:.1f} s: {excerpt(text)}" if len(text) > FASTEST_SPEECH * seconds else ""


def _too_long(clip: MediaFacts, text: str) -> str:
    return f"{clip.seconds:.1f} s" if (clip.seconds or 0) > LONGEST else ""


_PROBLEMS: dict[str, list[tuple[str, str, Callable[[MediaFacts, str], str]]]] = {
    "image": [("image", "with an image that can't be used, left out of training", lambda one, text: one.reason or "")],
    "audio": [
        ("audio", "with a clip that can't be used, left out of training", lambda one, text: one.reason or ""),
        ("audio_doubtful", "with a clip that is used, but listen to it", lambda one, text: one.warning or ""),
        ("audio_quiet", "with a nearly silent clip", _quiet),
        (
            "audio_too_fast",
            f"with more than {FASTEST_SPEECH:g} characters a second: the clip can't hold its transcript",
            _too_fast,
        ),
        (
            "audio_too_long",
            f"with a clip of more than {LONGEST:g} s, left out of training: cut it at pauses",
            _too_long,
        ),
    ],
}
"""Kind -> what, and what to show of a row that has it (nothing: it has not)."""


def _finish(key: str, waiting: dict[str, Future[MediaFacts]], found: dict[str, MediaFacts], cache: "_Cache") -> None:
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
