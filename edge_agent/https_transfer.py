"""Fetching artifacts over HTTPS: the second transport, where a device can reach the coordinator's API.

Bytes come in ranges (RFC 9110, section 14) from the first missing block on, and each block is checked and written as
over MQTT, so a pull may even go on over the other transport.
"""

import http.client
import logging
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contract import blocks, limits
from edge_agent.errors import GivenUpError, RefusedError, UnavailableError
from edge_agent.identity import server_tls
from edge_agent.partfile import PartFile
from edge_agent.policy import Bucket

_SCHEME = "Fieldfare-Device"  # as in contract.signatures, which would load `cryptography`
_PIECE_BYTES = 16 * 1024  # between two looks at whether to go on
_REJECTED = 3  # blocks with a wrong digest after which an artifact is refused
_BACKOFF_S = (0.5, 16.0)
_POLL_S = 0.25

_LOG = logging.getLogger(__name__)


class Ranges:
    """A transport (`artifacts.Fill`) over the coordinator's HTTPS API."""

    def __init__(
        self,
        url: str,
        ca: Path,
        token: Callable[[], str],
        *,
        bytes_per_s: float = 0.0,
        timeout_s: float = 60.0,
        patience_s: float = 60.0,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            url: of the coordinator, for example `https://host:8443`.
            ca: PEM file of the fleet's own authority, the only one that is trusted.
            token: gives a device token for the audience `blobs`.
            bytes_per_s: of all artifacts together, on average over a few seconds; 0 is no limit.
            timeout_s: of one read from the connection.
            patience_s: seconds without a new block, over all connections, after which a pull is given up.
            stopping: set when the agent ends.
            clock: monotonic seconds.
        """
        self._parts, self._ca, self._token = urllib.parse.urlsplit(url), ca, token
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._stopping, self._clock = stopping, clock
        self._bucket = Bucket(bytes_per_s, clock())

    def fill(self, part: PartFile, give_up: Callable[[], bool]) -> None:
        """Bring every missing block into a part file; see `artifacts.Fill`."""
        progress, pause = self._clock(), _BACKOFF_S[0]
        while not part.complete:
            left = part.left
            try:
                self._run(part, give_up)
                continue
            except _CutError as error:
                problem = str(error)
            if part.rejected >= _REJECTED:
                raise RefusedError(
                    f"artifact {part.blob.sha256[:12]}: {_REJECTED} blocks came whose SHA-256 is not the listed one"
                )
            if part.left < left:
                progress, pause = self._clock(), _BACKOFF_S[0]
            if self._clock() - progress > self._patience_s:
                raise UnavailableError(f"artifact {part.blob.sha256[:12]} did not come from {self._where()}: {problem}")
            _LOG.info("artifact %s goes on in %.1f s: %s", part.blob.sha256[:12], pause, problem)
            self._wait(pause * random.uniform(0.5, 1.0), give_up)  # noqa: S311  # not a secret
            pause = min(2 * pause, _BACKOFF_S[1])

    def _run(self, part: PartFile, give_up: Callable[[], bool]) -> None:
        """One request, for the first missing blocks that stand together.

        Raises:
            _CutError: they did not all come.
        """
        first, after = part.gap()
        begin, end = first * limits.BLOCK_BYTES, min(part.blob.size, after * limits.BLOCK_BYTES)
        headers = {"Authorization": f"{_SCHEME} {self._token()}", "Range": f"bytes={begin}-{end - 1}"}
        connection = http.client.HTTPSConnection(
            self._parts.hostname or "", self._parts.port, timeout=self._timeout_s, context=server_tls(self._ca)
        )
        try:
            with _cut():
                connection.request("GET", f"/v1/artifacts/{part.blob.sha256}", headers=headers)
                response = connection.getresponse()
            wanted = f"bytes {begin}-{end - 1}/{part.blob.size}"
            if response.status != 206 or response.getheader("Content-Range") != wanted:
                # Redirects too: only the coordinator itself may get the token and give the bytes.
                raise _CutError(f"HTTP {response.status} where {wanted} was asked for")
            for index in range(first, after):
                data = self._block(response, blocks.length(part.blob.size, index), give_up)
                if not part.accept(index, data):
                    raise _CutError(f"block {index} is not the listed one")
        finally:
            connection.close()

    def _block(self, response: http.client.HTTPResponse, size: int, give_up: Callable[[], bool]) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = min(_PIECE_BYTES, size - len(data))
            while not self._bucket.take([piece], self._clock()):
                self._wait(_POLL_S, give_up)
            self._check(give_up)
            with _cut():
                came = response.read(piece)
            if len(came) < piece:
                raise _CutError("the connection ended early")
            data += came
        return bytes(data)

    def _wait(self, seconds: float, give_up: Callable[[], bool]) -> None:
        until = self._clock() + seconds
        while (left := until - self._clock()) > 0:
            self._check(give_up)
            self._stopping.wait(min(left, _POLL_S))
        self._check(give_up)

    def _check(self, give_up: Callable[[], bool]) -> None:
        if give_up():
            raise GivenUpError("the artifact is not wanted any more")
        if self._stopping.is_set():
            raise UnavailableError("the agent ends; the artifact will be resumed")

    def _where(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}"


class _CutError(Exception):
    """This connection gives no more; another may."""


@contextmanager
def _cut() -> Iterator[None]:
    """Errors of the network, told from those of the disk."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _CutError(f"{type(error).__name__}: {error}") from error
