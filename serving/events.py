"""What the HTTP side, the generators and the encoders say to each other: plain values that travel between processes.

No torch in here: the HTTP side has none.
"""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kauli.models.requests import TextRequest, TokenLogprob, TranscriptionRequest, Word


@dataclass(frozen=True)
class Started:
    """The request was accepted; its prompt has this many tokens."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """Some text of answer `index`, whole characters only; its last piece has a `finish` ("stop" or "length")."""

    text: str
    tokens: int
    finish: str | None = None
    index: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()
    language: str | None = None
    """Of a transcript: what was asked for, or what was heard."""
    words: tuple[Word, ...] = ()
    """Of the last piece of a transcript whose words were asked for: all of them."""


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer, or in the middle of it; `status` is an HTTP status."""

    status: int
    message: str
    code: str
    param: str | None = None


class Refused(Exception):
    """Ends a request from anywhere inside; carries what the caller is told."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.failed = failed


NOT_ALIGNED = Failed(404, "no aligned base is served: kauli fetch kauli-clip", "model_not_found", "model")
"""The answer to whoever asks for the space that pictures and texts share, where there is none."""

Event = Started | Piece | Failed


NO_SPEECH = Failed(
    404, "no speech recogniser is served: kauli fetch whisper-base, and serve the task transcribe", "model_not_found",
    "model",
)  # fmt: skip
"""The answer to whoever asks for a transcript, where nothing hears."""


@dataclass(frozen=True)
class MediaForm:
    """What an adapter's connector takes for a picture or a recording: the features of one tower, in which shape."""

    encoder: str
    """The name of the base whose tower it is."""
    tower: str
    """Its `ImageTower.sha256` or `AudioTower.sha256`."""
    grid: int = 0
    """Of a picture's features."""
    stack: int = 0
    """Frames of a recording that are one feature."""


@dataclass(frozen=True)
class EncodedMedia:
    """A picture or a recording as its tower takes it; `cached` when nothing had to be computed."""

    values: np.ndarray
    """(n, width) float16: 1 + grid * grid of a picture, one for `stack` frames of a recording."""
    cached: bool


@dataclass(frozen=True)
class Vectors:
    """Pictures and texts in their shared space."""

    values: np.ndarray
    """(N, dim) float32, each of length 1."""
    tokens: int
    """Of the texts together; a picture has none."""


Ranked = list[tuple[str, float]]
"""Labels with their probabilities, the likeliest first."""


class Backend(Protocol):
    """What every deployment answers: whether it works, and which adapters it holds."""

    async def check(self) -> str | None:
        """None when it works, else what is wrong with it."""
        ...

    async def adapters(self) -> list[dict[str, Any]]:
        """What is loaded, and how many requests use it: `adapter`, `in_use`."""
        ...

    async def load(self, adapter: str) -> Failed | None:
        """Load an adapter ahead of its first request; None, or why it can't be."""
        ...

    async def unload(self, adapter: str) -> bool:
        """Forget an adapter once no request uses it; whether it was loaded."""
        ...


class TextBackend(Backend, Protocol):
    """Whatever answers: a `TextGenerator` in this process, or a handle to one elsewhere."""

    def stream(self, request: TextRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """`Started`, then pieces until each of the `n` answers has a `finish`; or `Failed`, as the last event.

        With `whole` each answer may come as one piece.
        """
        ...

    async def media_forms(self, adapter: str) -> dict[str, MediaForm] | Failed:
        """What the adapter takes, by kind of media ("image", "audio"); empty where it takes none."""
        ...


class MediaBackend(Backend, Protocol):
    """Whatever makes features of pictures or of recordings."""

    async def features(self, content: bytes, form: MediaForm) -> EncodedMedia | Failed:
        """A picture or a recording as the connector of an adapter wants it."""
        ...

    async def counts(self) -> dict[str, float]:
        """Of the features: `hits` and `misses` of the cache, and the mean time of each in ms, `hit_ms`, `miss_ms`."""
        ...


class AudioBackend(MediaBackend, Protocol):
    """Whatever hears: a `Transcriber` in this process, or a handle to one elsewhere."""

    def stream(self, request: TranscriptionRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """As a `TextBackend`'s, of one clip."""
        ...

    async def longest(self) -> float:
        """The seconds of sound that it hears at once."""
        ...


class ImageBackend(MediaBackend, Protocol):
    """Whatever sees: an `ImageEncoder` in this process, or a handle to one elsewhere."""

    async def embed(self, inputs: Sequence[str | bytes]) -> Vectors | Failed:
        """Texts, and pictures as their encoded bytes, in the shared space."""
        ...

    async def classify(self, adapter: str, inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """What the head of an adapter (`name@version`) makes of each input."""
        ...

    async def classify_as(self, classes: Sequence[str], inputs: Sequence[str | bytes]) -> list[Ranked] | Failed:
        """How near each input is to the texts of `classes`, without any training."""
        ...
