"""A TCP relay that behaves like a bad link: slow, far, stalled, cut, or down. TLS passes through untouched.

It stands in for netem, which not every kernel has. Rate and delay hold for each direction by itself, and all
connections share them, as on one radio.

Example: python -m tests.links.relay --listen 127.0.0.1:18883 --to 10.77.0.1:8883 --rate 12500 --delay 0.3
"""

import argparse
import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

_CHUNK = 1400  # bytes, about a packet
_BUFFER_S = 1.0  # of data that the link takes before it pushes back
_SOCKET_BYTES = 32 * 1024  # of the sender's data that the kernel keeps beside that


@dataclass(frozen=True)
class Shape:
    """Of a link: bytes a second in each direction (0: as many as there are), and seconds one way."""

    bytes_per_s: float = 0.0
    delay_s: float = 0.0


GPRS = Shape(100_000 / 8, 0.3)  # 2G: 100 kbit/s, 600 ms there and back
SATELLITE = Shape(1_000_000 / 8, 0.6)
GOOD = Shape()


class _Direction:
    """What one direction of the link has carried, and when it is free again."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.free_at = 0.0
        self.carried = 0

    def arrival(self, size: int, now: float) -> float:
        """When a packet that is sent now comes out at the other end."""
        self.carried += size
        rate = self.shape.bytes_per_s
        self.free_at = max(now, self.free_at) + (size / rate if rate else 0.0)
        return self.free_at + self.shape.delay_s


class Relay:
    """Listens on `port` and carries to `target`; runs in a thread of its own until `close`.

    Attributes:
        port: on `host`.
        connections: accepted so far.
    """

    def __init__(self, target: tuple[str, int], shape: Shape = GOOD, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self._up, self._down = _Direction(shape), _Direction(shape)
        self._is_up = True
        self._flows = asyncio.Event()
        self._flows.set()
        self._streams: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BYTES)
        self._listener.bind((host, port))
        self._listener.listen(64)
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def carried(self) -> tuple[int, int]:
        """Bytes from the clients and bytes to them."""
        return self._up.carried, self._down.carried

    def cut(self) -> None:
        """End every connection."""
        self._call(self._cut)

    def down(self) -> None:
        """End every connection, and let nobody in."""
        self._is_up = False
        self.cut()

    def up(self) -> None:
        """Let connections in again."""
        self._is_up = True

    def stall(self) -> None:
        """Keep the connections and carry nothing, not even their end."""
        self._call(self._flows.clear)

    def flow(self) -> None:
        """Carry again what has waited since `stall`."""
        self._call(self._flows.set)

    def close(self) -> None:
        """End the relay."""
        self._call(self._cut)
        self._call(self._loop.stop)
        self._thread.join(10)

    def _call(self, what: Callable[[], object]) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (what(), done.set()))
        done.wait(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=self._listener, limit=_CHUNK))
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _cut(self) -> None:
        for writer in self._streams:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._is_up:
            writer.transport.abort()
            return
        self.connections += 1
        self._streams.add(writer)
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=_CHUNK)
        except OSError:
            writer.transport.abort()
            self._streams.discard(writer)
            return
        self._streams.add(far_writer)
        try:
            ways = self._carry(reader, far_writer, self._up), self._carry(far_reader, writer, self._down)
            with suppress(asyncio.CancelledError):  # the relay ends; the streams' callback asks for no such exception
                await asyncio.gather(*ways)
        finally:
            self._streams -= {writer, far_writer}
            for one in (writer, far_writer):
                one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: _Direction) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        sender = asyncio.create_task(self._deliver(queue, writer))
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                now = time.monotonic()
                queue.put_nowait((way.arrival(len(data), now), data))
                await asyncio.sleep(max(0.0, way.free_at - now - _BUFFER_S))
        queue.put_nowait((way.arrival(0, time.monotonic()), b""))
        await sender

    async def _deliver(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while True:
                due, data = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._flows.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()  # both ways end with the first that does


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--delay", type=float, default=0.0)
    options = parser.parse_args()
    (host, port), (far_host, far_port) = (text.rsplit(":", 1) for text in (options.listen, options.to))
    Relay((far_host, int(far_port)), Shape(options.rate, options.delay), host=host, port=int(port))
    threading.Event().wait()


if __name__ == "__main__":
    main()
