"""How many requests one client may send: a token bucket for each."""

import time
from collections import OrderedDict

_MOST_CLIENTS = 10_000


class Rates:
    """At most `per_minute` requests a minute of each client; after a pause, up to that many at once.

    A token bucket (Turner 1986). The clients seen longest ago are forgotten, which gives them a full bucket.
    """

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def wait(self, client: str, now: float | None = None) -> float:
        """Seconds until the client may send again; 0 where it may now, which counts one request."""
        now = time.monotonic() if now is None else now
        tokens, since = self._buckets.pop(client, (float(self._per_minute), now))
        tokens = min(float(self._per_minute), tokens + (now - since) * self._per_minute / 60)
        allowed = tokens >= 1
        self._buckets[client] = (tokens - allowed, now)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) * 60 / self._per_minute
