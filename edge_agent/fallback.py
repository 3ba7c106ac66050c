"""What no model here can answer is asked of cloud serving, by the owner's policy: raw samples leave the device then."""

import http.client
import logging
import ssl
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from contract.inference import HEADER_LENGTH
from edge_agent.api import Answer
from edge_agent.errors import ApiError, ConfigError, UnavailableError

_LOG = logging.getLogger(__name__)
SERVED_BY = "X-Fieldfare-Served-By"
_ANSWER_BYTES = 16 * 1024 * 1024
_PAUSE_S = 10.0  # after a failure nobody waits for the cloud again so soon
_SAID_S = 3600.0
_NO_FAULT = {200, 400, 404, 413, 422}  # what one app asks wrongly must not keep the cloud from the others


class Cloud:
    """Forwards inference requests as they are, by the same protocol."""

    def __init__(
        self,
        url: str,
        *,
        token_file: Path | None,
        ca: Path,
        event: Callable[[str], None],
        timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: of the serving, `https://HOST[:PORT][/PREFIX]`.
            token_file: with its bearer token, readable by its owner alone; None sends none.
            ca: an authority that is trusted beside the system's.
            event: hears that requests leave the device, once an hour at most.
            timeout_s: to connect, and between two pieces of an answer.
            clock: seconds that never go back.
        """
        self._parts = urllib.parse.urlsplit(url)
        self._token_file, self._ca, self._event = token_file, ca, event
        self._timeout_s, self._clock = timeout_s, clock
        self._lock = threading.Lock()
        self._not_before = self._say_after = float("-inf")

    def forward(self, model: str, body: bytes, header_length: str | None) -> Answer:
        """Ask the cloud.

        Args:
            model: its name.
            body: of the request, as it came.
            header_length: of its JSON part, where bytes follow.

        Raises:
            ApiError: `header_length` is no number.
            UnavailableError: it has no such model; or it cannot be reached, is not who it should be, or fails, and is
                asked again in ten seconds.
        """
        with self._lock:
            if self._clock() < self._not_before:
                raise UnavailableError("the cloud did not answer a moment ago")
        if header_length is not None and not (header_length.isascii() and header_length.isdigit()):
            raise ApiError(400, f"{HEADER_LENGTH} must be a number of bytes, is {header_length[:32]!r}")
        try:
            answer = self._ask(f"/v2/models/{urllib.parse.quote(model, safe='')}/infer", body, header_length)
        except (OSError, http.client.HTTPException, ConfigError) as error:
            with self._lock:
                self._not_before = self._clock() + _PAUSE_S
            _LOG.warning("fallback: %s: %s", self._parts.netloc, error)
            raise UnavailableError(f"the cloud at {self._parts.netloc} cannot be asked: {error}") from error
        self._say(model)
        if answer.status == 404:
            raise UnavailableError(f"the cloud at {self._parts.netloc} has no model {model[:64]!r}")
        return answer

    def _ask(self, path: str, body: bytes, header_length: str | None) -> Answer:
        headers = {"Content-Type": "application/json" if header_length is None else "application/octet-stream"}
        if header_length is not None:
            headers[HEADER_LENGTH] = header_length
        if self._token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._token_file)}"
        host, port = self._parts.hostname or "", self._parts.port or 443
        connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls())
        try:
            connection.request("POST", self._parts.path.rstrip("/") + path, body, headers)
            response = connection.getresponse()
            content = response.read(_ANSWER_BYTES + 1)
        finally:
            connection.close()
        if len(content) > _ANSWER_BYTES:
            raise http.client.HTTPException(f"its answer is longer than {_ANSWER_BYTES} bytes")
        if response.status not in _NO_FAULT:
            raise http.client.HTTPException(f"it answered with status {response.status}")
        answered = {SERVED_BY: "cloud"}
        if length := response.headers.get(HEADER_LENGTH):
            answered[HEADER_LENGTH] = length
        return Answer(response.status, content, answered, response.headers.get("Content-Type", "application/json"))

    def _tls(self) -> ssl.SSLContext:
        """The system's authorities and the fleet's; unlike the fleet's own servers, with dates whatever the clock."""
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(self._ca)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigError(f"{self._ca}: no readable CA certificate: {error}") from error
        return context

    def _say(self, model: str) -> None:
        with self._lock:
            if self._clock() < self._say_after:
                return
            self._say_after = self._clock() + _SAID_S
        self._event(f"{model} cannot serve here; its requests, with raw samples, go to {self._parts.netloc}")


def _token(path: Path) -> str:
    """The bearer token.

    Raises:
        ConfigError: others than the owner may read it, or it is no token.
    """
    with path.open(encoding="ascii", errors="replace") as file:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"{path} may be read by others than its owner; chmod 600 it")
        token = file.read(8192).strip()
    if not token or not token.isprintable() or " " in token or not token.isascii():
        raise ConfigError(f"{path} holds no bearer token")
    return token
