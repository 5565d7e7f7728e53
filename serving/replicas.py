"""What runs in the process of each deployment: one worker, loaded when the process starts.

torch is imported there and then: the process that builds the application needs none.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from kauli.models.bases.find import find_base
from kauli.models.tasks import resolve
from kauli.serving.settings import ServeArgs
from kauli.serving.tasks import WORKERS


class Replica:
    """A worker of `kauli.serving.tasks.WORKERS`; its methods are called by name."""

    _worker: Any = None

    def __init__(self, args: ServeArgs, worker: str, base: str, answers: bool) -> None:
        import torch

        # Ray sets one OpenMP thread for each logical CPU that it sets aside.
        torch.set_num_threads(args.threads or len(os.sched_getaffinity(0)))
        row = WORKERS[worker]
        found = find_base(base, allow_noncommercial=args.allow_noncommercial, task=row.base_task)
        self._worker = resolve(row.build)(args, found, answers)

    async def call(self, method: str, *values: Any) -> Any:
        """One of the worker's methods."""
        return await getattr(self._worker, method)(*values)

    async def stream(self, method: str, *values: Any) -> AsyncGenerator[Any]:
        """One of the worker's methods that give events one by one."""
        # Closed here: a client that has left must free its slot now, not when the garbage is collected.
        async with aclosing(getattr(self._worker, method)(*values)) as events:
            async for event in events:
                yield event

    def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises."""
        if not self._worker.alive():
            raise RuntimeError("the worker's thread has ended")

    def __del__(self) -> None:
        if self._worker is not None:
            self._worker.close()
