"""Fetching artifacts over MQTT: one place for all pulls, since all blocks come over one session."""

import threading
import time
from collections.abc import Callable

from contract import limits, topics
from edge_agent.errors import GivenUpError, UnavailableError
from edge_agent.pacing import Pace
from edge_agent.partfile import PartFile
from edge_agent.policy import Bucket
from edge_agent.pull import Pull
from edge_agent.session import Link

_POLL_S = 0.25  # how soon a waiting request notices that the agent ends


class Transfer:
    """Pulls that wait for blocks. `accept_block` is called by the thread that reads the session's inbox."""

    def __init__(
        self,
        link: Link,
        *,
        window: int = 8,
        retry_s: float = 10.0,
        bytes_per_s: float = 0.0,
        patience_s: float = 60.0,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            link: the session.
            window: most blocks on their way, and at most held in memory.
            retry_s: seconds of silence after which a request is sent again.
            bytes_per_s: of all artifacts together, on average over a few seconds; 0 is no limit.
            patience_s: seconds of silence after which it is given up.
            stopping: set when the agent ends.
            clock: monotonic seconds.
        """
        self._link = link
        self._patience_s = patience_s
        self._stopping, self._clock = stopping, clock
        self._pace = Pace(window=min(window, limits.BLOCKS_PER_REQUEST), retry_s=retry_s)
        self._bucket = Bucket(bytes_per_s, clock())
        self._lock = threading.Lock()
        self._pulls: dict[str, Pull] = {}

    def accept_block(self, sha256: str, index: int, data: bytes) -> None:
        """A block of an artifact; where nobody waits for it, a forgotten subscription is ended."""
        with self._lock:
            pull = self._pulls.get(sha256)
        if pull is None or not pull.accept(index, data):
            self._link.unsubscribe(topics.blob(sha256, index))

    def fill(self, part: PartFile, give_up: Callable[[], bool]) -> None:
        """Bring every missing block into a part file; see `artifacts.Fill`."""
        pull = Pull(part, self._link, self._pace, self._bucket, clock=self._clock)
        with self._lock:
            self._pulls[part.blob.sha256] = pull
        try:
            while not part.complete:
                if give_up():
                    raise GivenUpError(f"artifact {part.blob.sha256[:12]} is not wanted any more")
                if self._stopping.is_set() or pull.silent() > self._patience_s:
                    raise UnavailableError(f"artifact {part.blob.sha256[:12]} did not come; it will be resumed")
                pull.turn(_POLL_S)
        finally:
            with self._lock:
                del self._pulls[part.blob.sha256]
            pull.close()
