"""What the HTTP side and a generator say to each other: plain values, without torch, that travel between processes."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Protocol

from kauli.models.requests import TextRequest, TokenLogprob


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

    def stream(self, request: TextRequest, adapter: str | None, whole: bool = False) -> AsyncGenerator[Event]:
        """`Started`, then pieces until each of the `n` answers has a `finish`; or `Failed`, as the last event.

        With `whole` each answer may come as one piece.
        """
        ...

    async def check(self) -> str | None:
        """None when the engine answers, else what is wrong with it."""
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
