"""The worker for memories: finds similar pairs and terms for the prompts of translations, and learns at once."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from kauli.models.bases.find import Base
from kauli.models.errors import KauliError, UsageError
from kauli.models.text.embedder import Embedder
from kauli.models.text.memory import Confirmed, Match, Memories, Memory, Stored
from kauli.models.text.translation import Example
from kauli.serving.events import Failed, Refused
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.worker import refusable

T = TypeVar("T")


class MemoryWorker:
    """The memories of a storage: one thread for all searches, which take some milliseconds, one for additions.

    Each method names the tenant first, and reaches the memories of this tenant alone.
    """

    def __init__(self, embedder: Embedder, args: ServeArgs) -> None:
        self._memories = Memories(args.storage, embedder)
        # OpenMP keeps the number of threads by thread: several of them cost a single text more than they save
        self._thread = ThreadPoolExecutor(1, "memory", initializer=torch.set_num_threads, initargs=(1,))
        self._adding = ThreadPoolExecutor(1, "memory-add", initializer=torch.set_num_threads, initargs=(1,))
        self._stopped = False

    def alive(self) -> bool:
        """Whether it answers."""
        return not self._stopped

    async def check(self) -> str | None:
        """None when it answers, else what is wrong."""
        try:
            await asyncio.wait_for(self._run(lambda: None), 30)
        except TimeoutError:
            return "the memory did not answer within 30 seconds"
        return None

    def close(self) -> None:
        """Stop."""
        self._stopped = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._adding.shutdown(wait=False, cancel_futures=True)

    async def adapters(self) -> list[dict[str, Any]]:
        """None: memories belong to no adapter."""
        return []

    async def unload(self, adapter: str) -> bool:
        """It holds none."""
        return False

    @refusable
    async def search(
        self, tenant: str, names: Sequence[str], text: str, source: str, target: str, limit: int
    ) -> tuple[list[Match], list[Example]]:
        """The most useful pairs of the memories for a text, and the terms in it; see `Memory.search`.

        Of several memories the pairs come in turn, those with the same text before all others.
        """

        def find() -> tuple[list[Match], list[Example]]:
            found: list[list[Match]] = []
            terms: dict[str, Example] = {}
            for name in names:
                memory = self._memories.open(tenant, name)
                memory.check_languages(source, target)
                found.append(memory.search(text, source, target, limit))
                for term in memory.terms(text, source, target):
                    terms.setdefault(term.source.casefold(), term)
            turns = [(one.score < 100, turn, place, one) for place, those in enumerate(found)
                     for turn, one in enumerate(those)]  # fmt: skip
            once = dict[tuple[str, str], Match]()  # a pair that several memories have is shown once
            for *_, one in sorted(turns, key=lambda turn: turn[:3]):
                once.setdefault((one.source, one.target), one)
            return list(once.values())[:limit], list(terms.values())

        return await self._run(find)

    @refusable
    async def add(self, tenant: str, name: str, pairs: Sequence[Confirmed], create: bool = True) -> list[str]:
        """See `Memory.add`; a memory that is not there is made."""
        return await self._run(lambda: self._memories.open(tenant, name, create=create).add(pairs), self._adding)

    @refusable
    async def remove(self, tenant: str, name: str, ids: Sequence[str]) -> int:
        """See `Memory.remove`."""
        return await self._run(lambda: self._memories.open(tenant, name).remove(ids))

    @refusable
    async def pairs(self, tenant: str, name: str, options: dict[str, Any]) -> list[Stored]:
        """See `Memory.pairs`."""
        return await self._run(lambda: self._memories.open(tenant, name).pairs(**options))

    @refusable
    async def names(self, tenant: str) -> list[tuple[str, dict[tuple[str, str], int]]]:
        """The memories of a tenant, and how many pairs each has by its languages."""

        def opened(name: str) -> Memory:
            return self._memories.open(tenant, name)

        return await self._run(lambda: [(name, opened(name).languages()) for name in self._memories.names(tenant)])

    @refusable
    async def held(self, tenant: str, name: str) -> dict[tuple[str, str], int]:
        """How many pairs a memory has by its languages; none where it is not there."""

        def found() -> dict[tuple[str, str], int]:
            return self._memories.open(tenant, name).languages() if name in self._memories.names(tenant) else {}

        return await self._run(found)

    @refusable
    async def states(self, tenant: str, names: Sequence[str]) -> list[str]:
        """What differs after every change of these memories."""
        return await self._run(lambda: [self._memories.open(tenant, name).state() for name in names])

    @refusable
    async def delete(self, tenant: str, name: str) -> None:
        """See `Memories.delete`."""
        await self._run(lambda: self._memories.delete(tenant, name))

    async def _run(self, call: Callable[[], T], thread: ThreadPoolExecutor | None = None) -> T:
        """The result of a call in a thread of the worker, by default that of searches; a user's mistake is Refused."""
        try:
            return await asyncio.get_running_loop().run_in_executor(thread or self._thread, call)
        except UsageError as error:
            raise Refused(Failed(400, str(error), "invalid_value", "memory")) from None
        except KauliError as error:
            raise Refused(Failed(503, str(error), "unavailable", "memory")) from None


def build(args: ServeArgs, base: Base, answers: bool) -> MemoryWorker:
    """The worker on the base whose text encoder embeds."""
    return MemoryWorker(Embedder.load(base), args)
