"""Encoded images, texts and audio clips, kept by the hash of their content; the least recently used is evicted."""

import threading
from collections import OrderedDict

import numpy as np

Key = tuple[int | str, str]
"""What was computed (features with their grid or stack, or an embedding), and the hash of the content."""


class FeatureCache:
    """Arrays by key, read-only. Safe for threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._bytes = 0
        self._held: OrderedDict[Key, np.ndarray] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def get(self, key: Key) -> np.ndarray | None:
        """The array under the key, if it is still cached."""
        with self._lock:
            values = self._held.get(key)
            if values is not None:
                self._held.move_to_end(key)
            return values

    def put(self, key: Key, values: np.ndarray) -> None:
        """Keep `values`, which become read-only, unless they alone are too many bytes."""
        values.flags.writeable = False
        if values.nbytes > self._most:
            return
        with self._lock:
            old = self._held.pop(key, None)
            self._bytes += values.nbytes - (0 if old is None else old.nbytes)
            self._held[key] = values
            while self._bytes > self._most:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
