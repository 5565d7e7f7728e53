"""A request in the engine: what to generate, and how far it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from kauli.models.engine.beams import Beam
from kauli.models.engine.detokenize import TextStream
from kauli.models.engine.kv_cache import Span
from kauli.models.engine.sampling import Draw, Sampling
from kauli.models.requests import BeamSearch, TokenLogprob

Part = list[int] | Tensor
"""A piece of a prompt: tokens, or embeddings (n, hidden) of an image or of audio."""


@dataclass(frozen=True)
class Generation:
    """What to generate from a prompt, and with which adapter."""

    prompt: Sequence[Part]
    adapter: str | None = None
    """A key of the engine's adapters; None: the base alone."""
    max_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """None: none; n: those of the chosen tokens, and of the n likeliest at each place."""
    echo: int = 0
    """The number of the prompt's last tokens that the answer's first progress repeats, with their log probabilities
    where `logprobs` asks for some. They must not be embeddings."""
    beam: BeamSearch | None = None
    """None: one answer grows by itself. Else the answer comes at once, at its end; of `sampling` it heeds `no_repeat`
    and `ignore_eos`, and of `logprobs` it gives no likeliest tokens. It takes as many slots as the beam has answers."""
    index: int = 0
    """Which of several answers to the same prompt this is: each draws its own random numbers from the seed."""
    memory: Any = None
    """What the model attends to beside its own tokens; its `remember(slot, memory)` gets it with the slot, once it is
    `ready`."""


@dataclass(eq=False)
class Ticket:
    """A request in the engine; its owner may cancel it."""

    generation: Generation
    tokens: list[int]
    """The prompt; 0 in the place of an embedding."""
    embeddings: list[tuple[int, Tensor]]
    """(position of the first, embeddings (n, hidden))."""
    draw: Draw
    stream: TextStream
    limit: int
    """New tokens at most: what was asked for, or what the context leaves."""
    cancelled: bool = False
    slot: int = -1
    done: int = 0
    """Positions that the slot holds."""
    answer: list[int] = field(default_factory=list)
    echoed: list[TokenLogprob] = field(default_factory=list)
    """The tokens of `Generation.echo` that are read; the first has no log probability."""

    beam: Beam | None = None
    beside: list["Ticket"] = field(default_factory=list)
    """Those of the beam's other slots; only the first is queued and reported."""

    @property
    def scored(self) -> int:
        """The first position whose logits tell the probability of a prompt token; the prompt's length: none does."""
        asked = self.generation
        return len(self.tokens) - (0 if asked.logprobs is None else asked.echo)

    def kept(self, span: Span) -> int:
        """The first position of a piece whose logits are needed: the scored ones, and always the prompt's last."""
        last = span.end - (span.end == len(self.tokens))
        return max(span.start, min(last, self.scored))

    @property
    def reading(self) -> bool:
        """Whether the prompt is not yet read to its end."""
        return self.done < len(self.tokens)


def embeddings_in(ticket: Ticket, span: Span) -> list[tuple[int, Tensor]]:
    """(position of the first, embeddings (n, hidden)) of those of a prompt's embeddings that are in a span."""
    found = []
    for first, part in ticket.embeddings:
        low, high = max(first, span.start), min(first + len(part), span.end)
        if low < high:
            found.append((low, part[low - first : high - first]))
    return found
