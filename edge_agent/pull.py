"""One artifact on its way over MQTT, block by block.

A block has a topic of its own, which is subscribed at QoS 0 from the request until the block is there: the broker
keeps nothing for a device that went away, and a slow device gets no block that only others asked for. What is lost
is asked for again.
"""

import queue
from collections.abc import Callable
from contextlib import suppress

from contract import blocks, topics
from contract.messages import BlockRequest
from edge_agent.errors import RefusedError
from edge_agent.pacing import Pace
from edge_agent.partfile import PartFile
from edge_agent.policy import Bucket
from edge_agent.session import Link

_REJECTED = 3  # blocks with a wrong digest after which an artifact is refused
_BUSY = 10  # times the patience, where other messages keep the wire busy and no block comes


class Pull:
    """Asks for blocks and writes them. `accept` is called by the thread that reads the session's inbox."""

    def __init__(self, part: PartFile, link: Link, pace: Pace, bucket: Bucket, *, clock: Callable[[], float]) -> None:
        self._part, self._link, self._pace, self._bucket, self._clock = part, link, pace, bucket, clock
        self._asked: set[int] = set()  # changed by the pulling thread alone
        self._came: set[int] = set()  # asked for and in `_blocks`
        self._blocks: queue.SimpleQueue[tuple[int, bytes, float]] = queue.SimpleQueue()
        self._connection = link.connections
        self._progress = clock()

    def accept(self, index: int, data: bytes) -> bool:
        """Take a block; False where it is not awaited."""
        if index not in self._asked or index in self._came:
            return False
        self._came.add(index)
        self._blocks.put((index, data, self._clock()))
        self._link.unsubscribe(topics.blob(self._part.blob.sha256, index))
        return True

    def turn(self, poll_s: float) -> None:
        """Ask for what is due, and write what comes within `poll_s` seconds.

        Raises:
            RefusedError: blocks come that are not the artifact's.
            OSError: the disk does not take it.
        """
        self._ask()
        with suppress(queue.Empty):
            index, data, at = self._blocks.get(timeout=poll_s)
            self._pace.arrived(at, len(data))
            if self._part.accept(index, data):
                self._progress = at
            self._asked.discard(index)
            self._came.discard(index)
        if self._part.rejected >= _REJECTED:
            raise RefusedError(
                f"artifact {self._part.blob.sha256[:12]}: {_REJECTED} blocks came whose SHA-256 is not the listed one"
            )

    def silent(self) -> float:
        """Seconds without a sign that blocks still come; a wire that only others keep busy is one for so long."""
        waited, quiet = self._clock() - self._progress, self._link.quiet_s()
        return waited if quiet is None else max(min(waited, quiet), waited / _BUSY)

    def close(self) -> None:
        """End the subscriptions."""
        for index in self._asked - self._came:
            self._link.unsubscribe(topics.blob(self._part.blob.sha256, index))

    def _ask(self) -> None:
        now, waiting = self._clock(), self._asked - self._came
        if waiting and self._connection != self._link.connections:  # what was on its way went with the connection
            self._send(sorted(waiting), now)
        elif waiting and self._pace.lost(now, self._link.quiet_s()):
            self._pace.repeated(now)
            self._send(sorted(waiting), now)
        room = self._pace.room(len(self._asked))
        more = [index for index in self._part.missing(room + len(self._asked)) if index not in self._asked][:room]
        allowed = self._bucket.take([blocks.length(self._part.blob.size, index) for index in more], now)
        if allowed:
            self._send(more[:allowed], now)
        elif not self._asked:
            self._progress = now  # it is we who are silent

    def _send(self, wanted: list[int], now: float) -> None:
        connection = self._link.connections
        idle = not self._asked
        self._asked.update(wanted)  # before they can come
        for index in wanted:
            self._link.subscribe(topics.blob(self._part.blob.sha256, index), qos=0)
        if self._link.send(BlockRequest(sha256=self._part.blob.sha256, blocks=wanted)):
            self._connection = connection
            self._pace.asked(now, idle=idle)
        else:
            self._connection = -1  # asked for again when there is a connection
