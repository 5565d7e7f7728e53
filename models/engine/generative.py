"""What text and speech share: a loaded base that answers requests pass by pass, each with its own adapter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kauli.models.adapters.delta import LinearDelta, mixed_deltas
from kauli.models.adapters.mixture import MixtureError
from kauli.models.bases.find import Base
from kauli.models.requests import Chunk, Progress

SLOTS = 16
"""Requests of one pass, unless the caller says otherwise."""


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """The contents of an adapter folder."""

    deltas: dict[str, LinearDelta] | None = None
    """Of the base's linear layers by name."""
    model: Any = None
    """The whole model, after full fine-tuning."""


class Generative(ABC):
    """A base with any number of adapters. Belongs to one thread at a time.

    A runner computes with one model: the base with all adapters, or a fully fine-tuned one. Its `batches`
    ((LoraBatch, ...)) mix the adapters' deltas of its layers, its `engine` (`kauli.models.engine.engine.Engine`)
    generates.
    """

    base: Base
    model: Any

    def __init__(self, slots: int) -> None:
        """`slots` requests share a pass."""
        self.slots = slots
        self._runner: Any = None
        self._full: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    @property
    @abstractmethod
    def window(self) -> int:
        """The most tokens of a prompt and its answer together."""

    @abstractmethod
    def _new_runner(self, model: Any) -> Any:
        """A runner of the base or of a fully fine-tuned model."""

    def _shared(self) -> Any:
        """The base's runner, made with the first adapter or request: scoring a base may need none."""
        if self._runner is None:
            self._runner = self._new_runner(self.model)
        return self._runner

    def _runner_of(self, adapter: str | None) -> tuple[Any, str | None]:
        """The runner that computes with an adapter, and the adapter's key in there."""
        full = self._full.get(adapter or "")
        return (self._shared(), adapter) if full is None else (full, None)

    def _runners(self) -> list[Any]:
        return [*([self._runner] if self._runner else []), *self._full.values()]

    def prepare(self) -> None:
        """Build the engine now, before anything else runs in another thread."""
        self._shared()

    def adapters(self) -> list[str]:
        """The keys of the loaded adapters."""
        return list(self._loaded)

    @abstractmethod
    def read_adapter(self, folder: Path) -> LoadedAdapter:
        """The contents of a checked adapter folder, for `put_adapter`; after `prepare` it may run beside `step`.

        Raises KauliError where they do not fit each other or the base, or are of a kind that is not served.
        """

    def mix_adapters(self, parts: Sequence[tuple[Any, float]]) -> Any:
        """The mixture of what `read_adapter` returned, with weights, for `put_adapter`; runs where that may run.

        Raises MixtureError where their layers can't be added. What they hold beside layers is checked before, by their
        cards (`kauli.models.adapters.mixture.check_together`).
        """
        if any(loaded.deltas is None for loaded, _ in parts):
            raise MixtureError("a fully fine-tuned model can't be mixed: use it by itself")
        try:
            deltas = mixed_deltas([(loaded.deltas, weight) for loaded, weight in parts])
        except RuntimeError as error:
            raise MixtureError(f"these adapters can't be mixed: {error}. Use each by itself") from None
        return replace(parts[0][0], deltas=deltas)

    def put_adapter(self, key: str, loaded: Any) -> None:
        """Load what `read_adapter` returned under a key (such as `text-sw@3`)."""
        if key in self._loaded:
            raise ValueError(f"adapter {key!r} is loaded already")
        if loaded.model is not None:
            self._full[key] = self._new_runner(loaded.model)
        if loaded.deltas is not None:
            for batch in self._shared().batches:
                batch.add(key, {name: delta for name, delta in loaded.deltas.items() if name in batch.layers})
        self._loaded[key] = loaded

    def add_adapter(self, key: str, folder: Path) -> None:
        """`read_adapter` and `put_adapter` at once."""
        self.put_adapter(key, self.read_adapter(folder))

    def remove_adapter(self, key: str) -> None:
        """Unload an adapter, which no request may be using."""
        self._full.pop(key, None)
        if self._loaded.pop(key).deltas is not None:
            for batch in self._shared().batches:
                batch.remove(key)

    def prompt_tokens(self, request: Any) -> list[int]:
        """The tokens before the answer, for `submit`; none where the architecture has no prompt."""
        return []

    @abstractmethod
    def submit(self, request: Any, adapter: str | None, tokens: list[int] | None = None) -> list[Any]:
        """Queue a request with an adapter (None: the base alone); a ticket, which can be cancelled, for each answer.

        `tokens` are its `prompt_tokens` where they are known. Raises UsageError where the base cannot take it.
        """

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return any(runner.engine.busy for runner in self._runners())

    def step(self) -> list[tuple[Any, Progress]]:
        """One pass of what is queued: tickets with what the pass added to their answers."""
        return [found for runner in self._runners() if runner.engine.busy for found in runner.step()]

    def _queued_first(self, requests: Sequence[Any]) -> Sequence[int]:
        """The order in which `generate` queues requests."""
        return range(len(requests))

    def generate(
        self,
        requests: Sequence[Any],
        adapters: Sequence[str | None],
        cancelled: Callable[[int], bool] | None = None,
    ) -> Iterator[list[Chunk]]:
        """Answer requests together, each row with its own adapter; yields the chunks of each pass.

        A row ends early when `cancelled(row)` is true before a pass. Raises UsageError as `submit` does.
        """
        rows: dict[Any, tuple[int, int]] = {}
        try:
            for row in self._queued_first(requests):
                tickets = self.submit(requests[row], adapters[row])
                rows |= {ticket: (row, index) for index, ticket in enumerate(tickets)}
            while rows:
                for ticket, (row, _) in rows.items():
                    ticket.cancelled = cancelled is not None and cancelled(row)
                chunks = []
                for ticket, progress in self.step():
                    row, index = rows[ticket]
                    chunks.append(Chunk(**vars(progress), row=row, index=index))
                    if progress.finish:
                        del rows[ticket]
                yield chunks
        finally:  # a caller that stops early cancels the rest
            for ticket in rows:
                ticket.cancelled = True
            if rows:
                self.step()
