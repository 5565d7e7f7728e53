"""The adapters in a generator's memory: loaded during traffic, counted in use, the least recently used evicted.

A mixture of adapters (`kauli.models.adapters.mixture`) is one of them, under its key; those that it is made of need not
be loaded.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kauli.models.adapters.folder import check_base
from kauli.models.adapters.mixture import Mixture, check_together, is_mixture
from kauli.models.adapters.registry import Registry
from kauli.models.engine.generative import Generative


@dataclass
class _Entry:
    ready: bool = False
    uses: int = 0
    leaving: bool = False
    """To be removed with its last use."""


class AdapterCache:
    """At most `most` adapters of a task. Safe for threads.

    `in_engine` runs what changes the task between two passes.
    """

    def __init__(
        self, task: Generative, registry: Registry, most: int, in_engine: Callable[[Callable[[], None]], None]
    ) -> None:
        self._task, self._registry, self._most, self._in_engine = task, registry, most, in_engine
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # the least recently used first
        self._changed = threading.Condition()

    def listed(self) -> list[dict[str, Any]]:
        """`adapter` and `in_use` of each that is loaded."""
        with self._changed:
            return [{"adapter": spec, "in_use": entry.uses} for spec, entry in self._entries.items() if entry.ready]

    def take(self, spec: str) -> bool:
        """Count one more use if the adapter is loaded; never waits."""
        with self._changed:
            entry = self._entries.get(spec)
            if entry is None or not entry.ready or entry.leaving:
                return False
            entry.uses += 1
            self._entries.move_to_end(spec)
            return True

    def load(self, spec: str) -> None:
        """`take`, after loading it where it is not loaded; blocks. Different adapters are loaded at the same time.

        Raises KauliError for a damaged adapter, or one of another base; MixtureError for adapters that can't be mixed.
        """
        with self._changed:
            victim = None
            while not self.take(spec):
                entry = self._entries.get(spec)
                if entry is not None and entry.leaving:
                    entry.leaving = False  # it is needed again before its last use ended
                    continue
                if entry is None:
                    if len(self._entries) < self._most:
                        break
                    victim = next((key for key, one in self._entries.items() if one.ready and not one.uses), None)
                    if victim is not None:
                        break
                self._changed.wait()  # for another thread that loads it, or for room
            else:
                return
            if victim is not None:
                del self._entries[victim]
            entry = self._entries[spec] = _Entry()
        try:
            if victim is not None:
                self._in_engine(lambda: self._task.remove_adapter(victim))
            loaded = self._read(spec)
            self._in_engine(lambda: self._task.put_adapter(spec, loaded))
        except BaseException:
            with self._changed:
                del self._entries[spec]
                self._changed.notify_all()
            raise
        with self._changed:
            entry.ready, entry.uses = True, 1
            self._changed.notify_all()

    def release(self, spec: str) -> None:
        """One use less."""
        with self._changed:
            entry = self._entries[spec]
            entry.uses -= 1
            forget = entry.leaving and not entry.uses
            if forget:
                del self._entries[spec]
            self._changed.notify_all()
        if forget:
            self._in_engine(lambda: self._task.remove_adapter(spec))

    def unload(self, spec: str) -> bool:
        """Remove an adapter and its mixtures, at once or with the last use; False where none of them is loaded."""
        with self._changed:
            found = [key for key in self._entries if key == spec or (is_mixture(key) and spec in _adapters(key))]
            taken = [key for key in found if self.take(key)]
            for key in taken:
                self._entries[key].leaving = True
        for key in taken:
            self.release(key)
        return bool(taken)

    def _read(self, spec: str) -> Any:
        parts = Mixture.parse(spec).parts if is_mixture(spec) else None
        specs = [part.adapter for part in parts] if parts else [spec]
        cards = [self._registry.card(one) for one in specs]
        for card in cards:
            check_base(card, self._task.base)
        if parts:
            check_together(cards)
        loaded = [self._task.read_adapter(self._registry.fetch(one)) for one in specs]
        if parts is None:
            return loaded[0]
        return self._task.mix_adapters([(one, part.weight) for one, part in zip(loaded, parts, strict=True)])


def _adapters(key: str) -> list[str]:
    return Mixture.parse(key).adapters
