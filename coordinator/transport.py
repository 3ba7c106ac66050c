"""How the client asks: HTTPS with a pinned authority, a bearer token, and patience with a coordinator that restarts.

A call that could not reach the coordinator is tried again until a deadline, because a supervisor restarts it; a call
that may have reached it is tried again only where repeating it changes nothing.
"""

import ssl
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgspec

T = TypeVar("T")
RETRY_S = 30.0  # how long a restart of the coordinator is waited for


class ClientError(Exception):
    """The coordinator refused; the message is its own sentence. `status` is the HTTP status, 0 without an answer."""

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(ClientError):
    """No answer from the coordinator until the deadline."""


class Transport:
    """One connection pool to one coordinator; safe to use from several threads."""

    def __init__(self, url: str, ca: Path, token: str, *, retry_s: float = RETRY_S, timeout_s: float = 60.0) -> None:
        """Connect on first use.

        Args:
            url: for example `https://127.0.0.1:8443`.
            ca: PEM file of the certificate authority that the server's certificate must come from.
            token: bearer token; empty for open routes only.
            retry_s: how long a coordinator that does not answer is tried.
            timeout_s: of one attempt.

        Raises:
            ClientError: no readable certificate authority.
        """
        try:
            context = ssl.create_default_context(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise ClientError(f"{ca}: no readable CA certificate: {error}") from error
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.url = url.rstrip("/")
        self._retry_s = retry_s
        self._http = httpx.Client(
            base_url=self.url, verify=context, headers=headers, timeout=timeout_s, trust_env=False
        )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, path: str, kind: type[T], **query: object) -> T:
        """GET and decode; `None` in the query is left out."""
        params = {name: str(value) for name, value in query.items() if value is not None}
        return decode(self.send("GET", path, params=params), kind)

    def post(self, path: str, kind: type[T], body: object = None, *, repeat: bool = False) -> T:
        """POST JSON and decode; `repeat` where doing it twice changes nothing."""
        headers = {"Content-Type": "application/json"}
        content = msgspec.json.encode({} if body is None else body)
        return decode(self.send("POST", path, content=content, headers=headers, repeat=repeat), kind)

    def send(
        self, method: str, path: str, *, repeat: bool = False, patience_s: float | None = None, **options: Any
    ) -> httpx.Response:
        """Send a request; options as for httpx.

        Args:
            method: GET or POST.
            path: of the route.
            repeat: doing it twice changes nothing.
            patience_s: how long to try; None is what the constructor says.
            options: of `httpx.Client.request`.

        Raises:
            UnreachableError: no answer until the deadline.
            ClientError: the coordinator refused, in its own words.
        """
        deadline = time.monotonic() + (self._retry_s if patience_s is None else patience_s)
        repeatable = repeat or method == "GET"
        while True:
            try:
                response = self._http.request(method, path, **options)
                break
            except httpx.TransportError as error:
                again = repeatable or isinstance(error, httpx.ConnectError)  # a refused connection did nothing
                if not again or time.monotonic() > deadline:
                    raise UnreachableError(f"{self.url} does not answer: {error}") from error
                time.sleep(0.2)
        if response.is_success:
            return response
        raise ClientError(_sentence(response), status=response.status_code)


def decode(response: httpx.Response, kind: type[T]) -> T:
    """A record from an answer; ClientError where it cannot be read."""
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        raise ClientError(f"{response.request.url.path}: an answer that this program cannot read: {error}") from error


def _sentence(response: httpx.Response) -> str:
    try:
        return str(msgspec.json.decode(response.content, type=dict[str, str])["error"])
    except (msgspec.DecodeError, KeyError):
        return f"{response.request.method} {response.request.url.path}: HTTP {response.status_code}"
