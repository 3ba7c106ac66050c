"""What the gateway took and what it dropped, for Prometheus and for the status page."""

import threading
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector


class Counters(Collector):
    """Counts by channel and by reason; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accepted: Counter[str] = Counter()
        self._dropped: Counter[str] = Counter()

    def accept(self, channel: str) -> None:
        """A message had its effect."""
        with self._lock:
            self._accepted[channel] += 1

    def drop(self, reason: str) -> None:
        """A message had none; `reason` is one of few words."""
        with self._lock:
            self._dropped[reason] += 1

    def accepted(self) -> dict[str, int]:
        """Messages by channel."""
        with self._lock:
            return dict(self._accepted)

    def dropped(self) -> dict[str, int]:
        """Messages by reason."""
        with self._lock:
            return dict(self._dropped)

    def collect(self) -> Iterable[Metric]:
        """For a Prometheus registry."""
        taken = CounterMetricFamily("fieldfare_gateway_messages", "Messages that had an effect.", labels=["channel"])
        for channel, count in self.accepted().items():
            taken.add_metric([channel], count)
        lost = CounterMetricFamily("fieldfare_gateway_dropped", "Messages that were dropped.", labels=["reason"])
        for reason, count in self.dropped().items():
            lost.add_metric([reason], count)
        return [taken, lost]
