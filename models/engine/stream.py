"""Many requests to one task as one stream of chunks: what evaluation and the command line call."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from kauli.models.requests import Chunk, Progress


class Stepping(Protocol):
    """A task whose requests are queued and then answered step by step."""

    def submit(self, request: Any, adapter: str | None) -> list[Any]:
        """Queue a request; a ticket, which can be cancelled, for each of its answers."""

    def step(self) -> list[tuple[Any, Progress]]:
        """One pass of everything that is queued."""


def stream(
    task: Stepping,
    requests: Sequence[Any],
    adapters: Sequence[str | None],
    cancelled: Callable[[int], bool] | None = None,
    order: Sequence[int] | None = None,
) -> Iterator[list[Chunk]]:
    """Answer requests together, each row with its own adapter; yields the chunks of each pass.

    A row ends early when `cancelled(row)` is true before a pass; they are queued in `order`. Raises
    UsageError as the task's `submit` does.
    """
    rows: dict[Any, tuple[int, int]] = {}
    try:
        for row in range(len(requests)) if order is None else order:
            tickets = task.submit(requests[row], adapters[row])
            rows |= {ticket: (row, index) for index, ticket in enumerate(tickets)}
        while rows:
            for ticket, (row, _) in rows.items():
                ticket.cancelled = cancelled is not None and cancelled(row)
            chunks = []
            for ticket, progress in task.step():
                row, index = rows[ticket]
                chunks.append(Chunk(**vars(progress), row=row, index=index))
                if progress.finish:
                    del rows[ticket]
            yield chunks
    finally:  # a caller that stops early cancels the rest
        for ticket in rows:
            ticket.cancelled = True
        if rows:
            task.step()
