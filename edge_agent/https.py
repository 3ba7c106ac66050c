"""One HTTPS request to the coordinator's API; the only authority that is trusted is the fleet's."""

import http.client
import json
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from edge_agent.errors import ConfigError, UnavailableError
from edge_agent.identity import server_tls

TIMEOUT_S = 30.0
ANSWER_BYTES = 256 * 1024


class Answer(NamedTuple):
    """What came back, as much of it as was read."""

    status: int
    content: bytes

    @property
    def sentence(self) -> str:
        """Why the coordinator refused, in its words."""
        try:
            answer: Any = json.loads(self.content)
            return str(answer["error"])[:500]
        except (ValueError, KeyError, TypeError):
            return "it gave no reason"


def post(url: str, ca: Path, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
    """Send a POST request; `body` is JSON, the rest as in `request`."""
    return request("POST", url, ca, path, body=body, headers={"Content-Type": "application/json", **(headers or {})})


def request(
    method: str,
    url: str,
    ca: Path,
    path: str,
    *,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    limit: int = ANSWER_BYTES,
) -> Answer:
    """Send a request.

    Args:
        method: for example `GET`.
        url: of the API, `https://host:port`.
        ca: the only certificate authority that is trusted to be the coordinator.
        path: of the route.
        body: of the request.
        headers: of the request.
        limit: most bytes of the answer that are read.

    Raises:
        ConfigError: no such URL or CA file.
        UnavailableError: it cannot be reached, or is not the coordinator.
    """
    host, port = address(url)
    connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=server_tls(ca))
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.read(limit))
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(f"cannot reach the coordinator at {url}: {error}") from error
    finally:
        connection.close()


def address(url: str) -> tuple[str, int]:
    """Host and port of the API's URL.

    Raises:
        ConfigError: it is no `https://host:port`.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port or 443
    except ValueError:  # a port that is no number, or half an IPv6 address
        host, port = None, 0
    if not host or parts.scheme != "https":
        raise ConfigError(f"url {url}: use https://HOST:PORT, as the coordinator prints it")
    return host, port
