"""What the HTTP side and a generator say to each other: plain values, without torch, that travel between processes."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ask:
    """One request for text; `messages` are (role, content) pairs, `max_tokens` None means what fits, up to 128."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class Started:
    """The request was accepted; its prompt has this many tokens."""

    prompt_tokens: int


@dataclass(frozen=True)
class Piece:
    """Some text of the answer, whole characters only; the last piece has a `finish` ("stop" or "length")."""

    text: str
    tokens: int
    finish: str | None = None


@dataclass(frozen=True)
class Failed:
    """The request ends without an answer, or in the middle of it; `status` is an HTTP status."""

    status: int
    message: str
    code: str
    param: str | None = None


Event = Started | Piece | Failed


class TextBackend(Protocol):
    """Whatever answers: a `TextGenerator` in this process, or a handle to one elsewhere."""

    def stream(self, ask: Ask, adapter: str | None) -> AsyncGenerator[Event]:
        """`Started`, then pieces until one has a `finish`; or `Failed` at any point, as the last event."""
        ...

    async def check(self) -> str | None:
        """None when the engine answers, else what is wrong with it."""
        ...
