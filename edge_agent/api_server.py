"""The sockets of the local API: a Unix socket, and loopback TCP where it is wanted. HTTP/1.1 with keep-alive.

An app is a user of this machine: the kernel says who is on the other end (`SO_PEERCRED`, `/proc/net/tcp`). Everything
that an app may take is bounded: connections, time for a request, bytes of its head and its body.
"""

import io
import logging
import os
import selectors
import socket
import stat
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from contract.inference import HEADER_LENGTH
from edge_agent.api import LARGE_BYTES, Answer, Api, refusal
from edge_agent.api_rate import Rates
from edge_agent.config import Config
from edge_agent.errors import UnavailableError

_LOG = logging.getLogger(__name__)
_CONNECTIONS = 64
_CONNECTIONS_PER_APP = 32
_HEAD_BYTES = 32 * 1024
_LARGE_BODIES, _LARGE_BODIES_PER_APP = 4, 2  # that may be in memory, of the largest size
_DRAIN_BYTES = 64 * 1024 * 1024
_IDLE_S = 60.0
_REQUEST_S = 15.0
_STOP_S = 5.0


class ApiServer:
    """Listens, and runs each connection in a thread of its own."""

    def __init__(self, api: Api, config: Config, root: Path, *, request_s: float = _REQUEST_S) -> None:
        """Prepare; `serve` opens the sockets.

        Args:
            api: answers.
            config: of the agent.
            root: the agent's folder; a relative socket lies there.
            request_s: seconds that an app has to send a request, and to take its answer.
        """
        self.api = api
        self.request_s = request_s
        self.max_body_bytes = config.api.max_body_bytes
        self.rates = Rates(rate_per_s=config.api.rate_per_s, burst=config.api.burst)
        self._held: Counter[str] = Counter()  # bytes of large bodies, by app
        self.stopping = False
        self.port = config.api.http_port
        self._socket = root / config.api.socket if config.api.socket else None
        self._wake: socket.socket | None = None
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, str] = {}
        self._threads: set[threading.Thread] = set()

    def serve(self) -> None:
        """Serve until `stop`.

        Raises:
            UnavailableError: a socket cannot be opened; it says which and why.
        """
        listeners: list[socket.socket] = []
        self._wake, woken = socket.socketpair()
        try:
            if self._socket is not None:
                listeners.append(_unix(self._socket))
            if self.port:
                listeners.append(_loopback(self.port))
            self._accept(listeners, woken)
        finally:
            for opened in (*listeners, self._wake, woken):
                opened.close()
            self._end()

    def stop(self) -> None:
        """Ask `serve` to return; requests that came whole are answered first. May be called from a signal handler."""
        self.stopping = True
        if self._wake is not None:
            with suppress(OSError):
                self._wake.send(b"\0")

    def hold(self, app: str, size: int) -> bool:
        """Whether a large body has room in memory; then `let_go` gives the room back."""
        with self._lock:
            room = self._held[app] + size <= _LARGE_BODIES_PER_APP * self.max_body_bytes
            if room and self._held.total() + size <= _LARGE_BODIES * self.max_body_bytes:
                self._held[app] += size
                return True
        return False

    def let_go(self, app: str, size: int) -> None:
        """A large body was handled."""
        with self._lock:
            self._held[app] -= size

    def _accept(self, listeners: list[socket.socket], woken: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            for ready in (*listeners, woken):
                ready.setblocking(False)
                selector.register(ready, selectors.EVENT_READ)
            while not self.stopping:
                for key, _ in selector.select():
                    if key.fileobj is not woken:
                        self._welcome(key.fileobj)  # type: ignore[arg-type]  # a listener, as registered above

    def _welcome(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except BlockingIOError:  # who knocked is gone again
            return
        except OSError as error:  # out of file descriptors
            _LOG.warning("local API: %s", error)
            time.sleep(0.1)
            return
        app = _app(connection, address)
        with self._lock:
            full = (
                len(self._connections) >= _CONNECTIONS
                or Counter(self._connections.values())[app] >= _CONNECTIONS_PER_APP
            )
            if not full:
                self._connections[connection] = app
        thread = threading.Thread(target=self._converse, args=(connection, app), name="app", daemon=True)
        try:
            if not full:
                self._threads.add(thread)
                thread.start()
                return
        except RuntimeError as error:  # the machine gives no more threads
            _LOG.warning("local API: %s", error)
            with self._lock:
                del self._connections[connection]
                self._threads.discard(thread)
        _turn_away(connection)

    def _converse(self, connection: socket.socket, app: str) -> None:
        try:
            _Conversation(connection, app, self)
        except OSError as error:
            _LOG.debug("local API, %s: %s", app, error)
        except Exception:  # noqa: BLE001  # one app's request must not end the service of the others
            _LOG.exception("local API, %s: failed unexpectedly", app)
        finally:
            with self._lock:
                del self._connections[connection]
                self._threads.discard(threading.current_thread())
            connection.close()

    def _end(self) -> None:
        if self._socket is not None and self.stopping:
            self._socket.unlink(missing_ok=True)
        with self._lock:
            threads = list(self._threads)
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RD)  # who waits for a request hears that none comes
        end = time.monotonic() + _STOP_S
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))


class _Reader(io.RawIOBase):
    """Reads a socket until a moment and up to a number of bytes, however slowly they trickle in."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.deadline, self.room = 0.0, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.room <= 0:
            raise _TooLongError
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        count = self._connection.recv_into(buffer)
        self.room -= count
        return count


class _TooLongError(OSError):
    """The head of a request has too many bytes."""


class _Conversation(BaseHTTPRequestHandler):
    """One connection, request after request."""

    protocol_version = "HTTP/1.1"
    wbufsize = 64 * 1024
    server: Any  # the ApiServer; the base class expects one of socketserver's

    def __init__(self, connection: socket.socket, app: str, server: ApiServer) -> None:
        self._app = app
        self._tcp = connection.family == socket.AF_INET
        super().__init__(connection, None, server)  # type: ignore[arg-type]  # as above

    def setup(self) -> None:
        """Buffered streams with a deadline."""
        self.connection = self.request
        if self._tcp:
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._raw = _Reader(self.connection)
        self.rfile = self._buffered = io.BufferedReader(self._raw)
        self.wfile = self.connection.makefile("wb", self.wbufsize)

    def handle(self) -> None:
        """Requests until one of both closes."""
        self.close_connection = False
        while not self.close_connection and not self.server.stopping:
            self._raw.deadline, self._raw.room = time.monotonic() + _IDLE_S, _HEAD_BYTES
            try:
                if not self._buffered.peek(1):
                    return
                self._raw.deadline = time.monotonic() + self.server.request_s
                self.handle_one_request()
            except TimeoutError:
                return
            except _TooLongError:
                self.send_error(431, f"the head of a request may have {_HEAD_BYTES} bytes")

    def do_GET(self) -> None:
        """Serve GET."""
        self._serve()

    def do_POST(self) -> None:
        """Serve POST."""
        self._serve()

    def _serve(self) -> None:
        length, refused = self._check()
        if refused is not None:
            self.close_connection = True
            self._send(refused)
            self._hang_up()
            return
        health = self.path.startswith("/v2/health/")
        wait = 0 if health else self.server.rates.wait_s(self._app, time.monotonic())
        if wait:
            self._discard(length)
            text = f"too many requests; wait {wait} s (api.rate_per_s and api.burst in agent.toml)"
            self._send(refusal(429, text, Retry_After=str(wait)))
        elif length > LARGE_BYTES:
            self._serve_large(length)
        else:
            self._send(self._answer(self._read(length), length))

    def _serve_large(self, length: int) -> None:
        if not self.server.hold(self._app, length):
            self.close_connection = True
            self._send(refusal(503, "too many large requests at once; send them one after another", Retry_After="1"))
            self._hang_up()
            return
        try:
            self._send(self._answer(self._read(length), length))  # until it is taken, it has its share of the memory
        finally:
            self.server.let_go(self._app, length)

    def _check(self) -> tuple[int, Answer | None]:
        """Bytes of the body, and why the request is refused before they are read."""
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Encoding", "identity") != "identity":
            return 0, refusal(411, "bodies must come as they are, with Content-Length: not chunked, not compressed")
        if not lengths and self.command == "POST":
            return 0, refusal(411, "a POST needs Content-Length")
        if lengths and not (len(lengths) == 1 and lengths[0].isascii() and lengths[0].isdigit()):
            return 0, refusal(400, "Content-Length must be one number")
        length = int(lengths[0]) if lengths and len(lengths[0]) < 20 else 0
        if lengths and (length > self.server.max_body_bytes or len(lengths[0]) >= 20):
            text = (
                f"the body has {lengths[0][:20]} bytes, the limit is {self.server.max_body_bytes}; send fewer samples"
            )
            return length, refusal(413, f"{text} at a time (api.max_body_bytes in agent.toml)")
        if self._tcp and not self._from_here():
            return length, refusal(
                403, "this API is for programs on this device, not for web pages: no Origin, and Host 127.0.0.1"
            )
        return length, None

    def _from_here(self) -> bool:
        """Whether this is no web page in a browser on this device, perhaps by a name that was bound to 127.0.0.1."""
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        return host.lower() in {"127.0.0.1", "localhost"} and self.headers.get("Origin") is None

    def _read(self, length: int) -> bytes:
        self._raw.room = length
        return self.rfile.read(length) if length else b""

    def _answer(self, body: bytes, length: int) -> Answer:
        if len(body) < length:
            self.close_connection = True
            return refusal(400, f"the body ended after {len(body)} of {length} bytes")
        try:
            return self.server.api.answer(self.command, self.path, body, self.headers.get(HEADER_LENGTH))
        except Exception:  # noqa: BLE001  # our mistake must neither end the connection nor show its inside
            _LOG.exception("local API: %s %s failed unexpectedly", self.command, self.path[:120])
            return refusal(500, "the agent failed unexpectedly; its log says how")

    def _discard(self, length: int) -> None:
        self._raw.room = length
        while length > 0 and (read := len(self.rfile.read(min(length, 64 * 1024)))):
            length -= read

    def _hang_up(self) -> None:
        """Take what the app still sends, so that it gets to read the answer, and keep none of it."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._discard(_DRAIN_BYTES)

    def _send(self, answer: Answer) -> None:
        deadline = time.monotonic() + self.server.request_s
        self.connection.settimeout(self.server.request_s)
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        if self.close_connection or self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer.body[:LARGE_BYTES])
        self.wfile.flush()
        rest = memoryview(answer.body)[LARGE_BYTES:]
        while rest:
            self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
            rest = rest[self.connection.send(rest) :]

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, in the protocol's words."""
        self.close_connection = True
        self.requestline, self.request_version = "", self.protocol_version
        self._send(refusal(int(code), message or explain or "this is no HTTP request"))
        self._hang_up()

    def handle_expect_100(self) -> bool:
        """Ask for a body only where it would be read."""
        _, refused = self._check()
        return refused is not None or super().handle_expect_100()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        """Requests are not logged."""


def _unix(path: Path) -> socket.socket:
    """Listen on a Unix socket: for the owner, and for the group of a folder that hands its group on (setgid)."""
    try:
        if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
            raise UnavailableError(f"{path} is there and no socket; set api.socket in agent.toml to another path")
        path.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path may have 107 bytes only
            path.chmod(0o660)
            listener.listen(_CONNECTIONS)
        except OSError:
            listener.close()
            raise
        finally:
            os.close(folder)
    except OSError as error:
        raise UnavailableError(f"{path}: the local API cannot listen there: {error.strerror}") from error
    return listener


def _loopback(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_CONNECTIONS)
    except OSError as error:
        listener.close()
        raise UnavailableError(f"127.0.0.1:{port}: the local API cannot listen there: {error.strerror}") from error
    return listener


def _turn_away(connection: socket.socket) -> None:
    answer = refusal(503, "too many connections; close some, or keep one and use it again")
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {answer.content_type}\r\nRetry-After: 1\r\n"
    with suppress(OSError), connection:
        connection.settimeout(0.0)
        connection.send(f"{head}Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n".encode() + answer.body)


def _app(connection: socket.socket, address: Any) -> str:
    """The user on the other end, as `uid 1000`."""
    if connection.family == socket.AF_UNIX:
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"uid {uid}"
    host, port = address
    local = f"{int.from_bytes(socket.inet_aton(host), 'little'):08X}:{port:04X}"
    with suppress(OSError), Path("/proc/net/tcp").open(encoding="ascii") as table:
        for line in table:
            fields = line.split()
            if len(fields) > 7 and fields[1] == local:
                return f"uid {fields[7]}"
    return "tcp"
