"""What the HTTP side and the workers exchange: plain values that travel between processes, and how.

No torch in here: the HTTP side has none.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kauli.models.requests import Progress, Spoken
from kauli.serving.settings import ServeArgs, is_loopback
from kauli.serving.tasks import WORKERS


@dataclass(frozen=True)
class Started:
    """The request was accepted; its prompt has this many tokens."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece(Progress):
    """Some text of answer `index`; the last piece of an answer has a `finish`."""

    index: int = 0


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer, or in the middle of it; `status` is an HTTP status."""

    status: int
    message: str
    code: str
    param: str | None = None
    retry_after: int = 2
    """Seconds to wait before the next try, of a 429 or 503."""


class Refused(Exception):
    """Ends a request from anywhere inside; carries the error for the client."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


Event = Started | Piece | Failed


@dataclass(frozen=True)
class SpeechStarted:
    """A text is about to be spoken."""

    language: str
    sentences: int
    unread: tuple[str, ...] = ()
    """Letters of the text that are not read."""


SpeechEvent = SpeechStarted | Spoken | Failed


def internal_error(what: str, args: ServeArgs) -> Failed:
    """The error of a bug or a broken machine, whose reason the caller logs; on loopback it names the log's file."""
    log = os.path.realpath("/proc/self/fd/2")  # Ray writes what a process logs into a file of its own
    shown = f" {log}" if is_loopback(args.host) and os.path.isfile(log) else ""
    return Failed(500, f"{what}; the service's log{shown} has the reason", "internal_error")


TOO_MANY = Failed(429, "Too many requests are waiting; retry later", "queue_full")


def not_served(worker: str, param: str = "model") -> Failed:
    """The error of a request for a worker that does not run."""
    return Failed(404, WORKERS[worker].missing, "model_not_found", param)


@dataclass(frozen=True)
class MediaForm:
    """What an adapter's connector takes for an image or an audio clip: one encoder's features, and their shape."""

    encoder: str
    """The name of the encoder's base."""
    tower: str
    """Its `ImageTower.sha256` or `AudioTower.sha256`."""
    grid: int = 0
    """Of an image's features."""
    stack: int = 0
    """Encoder frames of an audio clip that are one feature."""


@dataclass(frozen=True)
class EncodedMedia:
    """An image or an audio clip, encoded; `cached` when nothing had to be computed."""

    values: np.ndarray
    """(n, width) float16: 1 + grid * grid of an image, one for `stack` frames of audio."""
    cached: bool


@dataclass(frozen=True)
class Vectors:
    """Images and texts in their shared space."""

    values: np.ndarray
    """(N, dim) float32, each of length 1."""
    tokens: int
    """Of the texts together; an image has none."""
    truncated: tuple[int, ...] = ()
    """The inputs whose end the text encoder did not read."""


Ranked = list[tuple[str, float]]
"""Labels with their probabilities, the likeliest first."""


# How a worker's methods travel to a deployment, which may have several replicas: all others go to one, each time.

STREAMED = frozenset({"stream"})
"""Methods that give events one by one."""
CONSTANT = frozenset({"longest", "voices"})
"""Methods whose answer never changes: asked once."""


def _uses(found: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    uses: dict[str, int] = {}
    for entry in (entry for entries in found for entry in entries):
        uses[entry["adapter"]] = uses.get(entry["adapter"], 0) + entry["in_use"]
    return [{"adapter": spec, "in_use": count} for spec, count in uses.items()]


def _mean_counts(found: Sequence[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for count, mean in (("hits", "hit_ms"), ("misses", "miss_ms")):
        total[count] = sum(one[count] for one in found)
        total[mean] = round(sum(one[count] * one[mean] for one in found) / max(1, total[count]), 2)
    return total


BROADCAST: Mapping[str, Callable[[Sequence[Any]], Any]] = {
    "adapters": _uses,
    "load": lambda found: next((failed for failed in found if failed), None),
    "unload": any,
    "counts": _mean_counts,
}
"""Methods that every replica answers -> how the answers become one."""
