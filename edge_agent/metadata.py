"""Files of TUF metadata, fetched from the coordinator: page by page over MQTT, or whole over HTTPS.

It travels packed (`codec.deflate`): the file that names every bundle shrinks to a seventh. Never more than the caller's
limit is held, packed or not, whatever the other side sends.
"""

import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path

from contract import codec, limits
from contract.errors import MalformedError, TooLargeError
from contract.messages import MetadataReply, MetadataRequest
from edge_agent import https
from edge_agent.asking import Asker
from edge_agent.errors import TrustError, UnavailableError
from edge_agent.trust import Fetch

_PACKING_BYTES = 1024  # by which packing may make incompressible content larger
_TOKEN_S = 60.0
_SCHEME = "Fieldfare-Device"  # as in contract.signatures, which would load `cryptography`


class Pages(Asker[tuple[str, int], MetadataReply]):
    """Metadata over MQTT."""

    def accept(self, reply: MetadataReply) -> None:
        """A page."""
        self.answer((reply.name, reply.offset), reply)

    def fetch(self, name: str, limit: int) -> bytes | None:
        """One file; None where the repository has no such file.

        Args:
            name: for example `2.root.json`.
            limit: most bytes that it may have.

        Raises:
            TrustError: it has more.
            UnavailableError: no answer in time, the agent ends, or the file changed between two pages.
        """
        content = b""
        while True:
            question = MetadataRequest(name=name, offset=len(content))
            reply = self.wait_for((name, len(content)), question, f"a request for {name}")
            if reply.content is None:
                return None
            if max(reply.size, len(content) + len(reply.content)) > limit + _PACKING_BYTES:
                raise TrustError(f"{name} has more than {limit} bytes")
            if len(reply.content) != min(limits.METADATA_PAGE_BYTES, reply.size - len(content)):
                raise UnavailableError(f"{name} came in pages that do not fit together; it is asked for again")
            content += reply.content
            if len(content) == reply.size:
                return _unpacked(content, name, limit)


def over_https(url: str, ca: Path, token: Callable[[], str], *, clock: Callable[[], float] = time.monotonic) -> Fetch:
    """Metadata from the coordinator's HTTPS API.

    Args:
        url: of the coordinator, for example `https://host:8443`.
        ca: PEM file of the fleet's own authority, the only one that is trusted.
        token: gives a device token for the audience `metadata`; it is used for a minute.
        clock: monotonic seconds.
    """
    held: tuple[str, float] | None = None

    def header() -> str:
        nonlocal held  # a child signs each one, and a refresh fetches five files
        if held is None or clock() > held[1]:
            held = token(), clock() + _TOKEN_S
        return f"{_SCHEME} {held[0]}"

    def fetch(name: str, limit: int) -> bytes | None:
        path, most = f"/v1/tuf/{urllib.parse.quote(name)}", limit + _PACKING_BYTES
        answer = https.request("GET", url, ca, path, headers={"Authorization": header()}, limit=most + 1)
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise UnavailableError(f"{url} did not give {name}: HTTP {answer.status}: {answer.sentence}")
        if len(answer.content) > most:
            raise TrustError(f"{name} has more than {limit} bytes")
        return _unpacked(answer.content, name, limit)

    return fetch


def _unpacked(content: bytes, name: str, limit: int) -> bytes:
    try:
        return codec.inflate(content, limit=limit, what=name)
    except TooLargeError as error:
        raise TrustError(f"{name} has more than {limit} bytes") from error
    except MalformedError as error:
        raise UnavailableError(str(error)) from error
