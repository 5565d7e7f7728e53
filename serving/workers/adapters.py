"""A worker whose task answers with adapters: they are loaded during traffic, in threads of their own."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kauli.models.adapters.mixture import MixtureError
from kauli.models.adapters.registry import Registry
from kauli.models.errors import KauliError
from kauli.serving.events import Failed, Refused
from kauli.serving.settings import ServeArgs
from kauli.serving.workers.adapter_cache import AdapterCache
from kauli.serving.workers.worker import Worker, refusable, unloadable

_LOADERS = 4  # adapters loaded at the same time
_log = logging.getLogger(__name__)


class AdapterWorker(Worker):
    """A worker that keeps adapters in memory and counts who uses them."""

    def __init__(self, name: str, args: ServeArgs, task: Any) -> None:
        super().__init__(name, args)
        self._task = task
        self._registry = Registry(args.storage)
        self._cache = AdapterCache(task, self._registry, args.max_adapters, self._in_thread)
        # Loading adapters holds up neither the worker's thread nor each other.
        self._loading = ThreadPoolExecutor(_LOADERS, "loading")

    async def adapters(self) -> list[dict[str, Any]]:
        """The loaded adapters, and how many requests use each: `adapter`, `in_use`."""
        return self._cache.listed()

    @refusable
    async def load(self, adapter: str) -> None:
        """Load an adapter ahead of its first request."""
        await self._take(adapter, time.monotonic() + self._deadline_s)
        self._release(adapter)

    async def unload(self, adapter: str) -> bool:
        """Remove an adapter and its mixtures from memory once no request uses them; whether any was loaded."""
        return await asyncio.to_thread(self._cache.unload, adapter)

    def close(self) -> None:
        """Stop after the current pass; unfinished requests fail with 503."""
        super().close()
        self._loading.shutdown(wait=False, cancel_futures=True)

    async def _take(self, adapter: str, until: float) -> None:
        """Count one more use of an adapter, which is loaded where it is not. Raises Refused."""
        if self._cache.take(adapter):
            return
        loading = self._loading.submit(self._cache.load, adapter)
        try:
            await self._before(until, asyncio.wrap_future(loading))
        except MixtureError as error:
            raise Refused(Failed(400, str(error), "invalid_value", "model")) from None
        except KauliError as error:
            reason = f": {error}"
        except (Refused, asyncio.CancelledError):
            # It may still succeed, and then counts a use that no request has.
            loading.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else self._release(adapter)
            )
            raise
        except Exception:
            # A damaged adapter must not take the other requests with it.
            _log.exception("adapter %s failed to load", adapter)
            reason = ""
        else:
            return
        raise Refused(unloadable(adapter, reason))

    def _release(self, adapter: str) -> None:
        # In the worker's thread, after the pass that ends the request; never in the pool, whose threads may all be
        # waiting for this.
        self._post(lambda: self._cache.release(adapter))
