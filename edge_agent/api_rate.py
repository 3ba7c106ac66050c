"""How often an app may ask: one token bucket each."""

import math
import threading
from dataclasses import dataclass

_APPS = 256


@dataclass(frozen=True)
class Bucket:
    """Tokens that were left at a moment (seconds of a clock that never goes back)."""

    tokens: float
    at: float


def take(bucket: Bucket, now: float, *, rate: float, burst: int) -> tuple[Bucket, float]:
    """Take one token.

    Args:
        bucket: as it was left.
        now: seconds, same clock.
        rate: tokens that come back each second, above 0.
        burst: most tokens in a bucket.

    Returns:
        The bucket afterwards, and the seconds until a token is there: 0 where one was taken.
    """
    tokens = min(bucket.tokens + max(now - bucket.at, 0.0) * rate, float(burst))
    if tokens >= 1:
        return Bucket(tokens - 1, now), 0.0
    return Bucket(tokens, now), (1 - tokens) / rate


class Rates:
    """The buckets of all apps; beyond 256 apps the one that asked longest ago is forgotten."""

    def __init__(self, *, rate_per_s: float, burst: int) -> None:
        """Prepare; a rate of 0 is no limit."""
        self._rate, self._burst = rate_per_s, burst
        self._buckets: dict[str, Bucket] = {}
        self._lock = threading.Lock()

    def wait_s(self, app: str, now: float) -> int:
        """Whole seconds that an app must wait before it asks again; 0 where it may ask now."""
        if not self._rate:
            return 0
        with self._lock:
            bucket = self._buckets.pop(app, Bucket(float(self._burst), now))
            self._buckets[app], wait = take(bucket, now, rate=self._rate, burst=self._burst)
            if len(self._buckets) > _APPS:
                del self._buckets[next(iter(self._buckets))]
        return math.ceil(wait)
