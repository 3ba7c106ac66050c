"""Does the fleet's signer vouch for this bundle? Asked of python-tuf in a short-lived child process (`verifier`).

The child costs 22 MB and 100 ms and gives both back. It has no network: the parent hands it each file of metadata
through its standard input, never more bytes than the child asked for. Messages are MessagePack, each after its length
in four bytes. What the child verified, it keeps in the metadata folder: no older state can be passed off as new.
"""

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from contract import codec, limits
from contract.errors import MalformedError
from edge_agent import RELEASED
from edge_agent.errors import TrustError, UnavailableError

T = TypeVar("T")
Fetch = Callable[[str, int], bytes | None]  # name of a metadata file, most bytes of it: content, None where none is
_FRAME_BYTES = limits.METADATA_BYTES + 1024


class Clock(msgspec.Struct, frozen=True):
    """What a device knows of the time.

    Attributes:
        now: seconds since the epoch, which may be wrong (`verifier` says what is done then).
        boot: id of this boot; the same as long as `uptime` goes on.
        uptime: seconds since then, sleep included.
        built: when this agent was made, seconds since the epoch; it is never earlier.
    """

    now: float
    boot: str
    uptime: float
    built: float = RELEASED

    @classmethod
    def read(cls) -> "Clock":
        """As of now."""
        try:
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            boot = ""  # uptime is not used then
        return cls(time.time(), boot, time.clock_gettime(time.CLOCK_BOOTTIME))


class Task(msgspec.Struct, frozen=True, tag_field="type"):
    """Parent to child, first: what to look up, the root of trust from enrolment, and what the device's clocks say."""

    root: bytes
    metadata: str
    target: str
    clock: Clock


class Content(msgspec.Struct, frozen=True, tag_field="type"):
    """Parent to child: the file that was asked for, or None."""

    content: bytes | None


class Ask(msgspec.Struct, frozen=True, tag_field="type"):
    """Child to parent: the next file that is needed, and how large it may be."""

    name: str
    limit: int


class Target(msgspec.Struct, frozen=True, tag_field="type"):
    """Child to parent, last: what the signed metadata says of the target; the rest as in `contract.targets.Custom`."""

    size: int
    sha256: str
    hardware_classes: list[str] = []
    min_agent_version: str = ""
    min_runtime_version: str = ""
    blocks: str | None = None


class Failure(msgspec.Struct, frozen=True, tag_field="type"):
    """Child to parent, last: why there is no answer; `trust` where the metadata is to blame."""

    reason: str
    trust: bool


Answer = Ask | Target | Failure


def lookup(root: bytes, metadata: Path, target: str, fetch: Fetch, *, clock: Clock | None = None) -> Target:
    """Refresh the trusted metadata and look one target up.

    Args:
        root: the root metadata from enrolment.
        metadata: folder of the metadata that was verified before.
        target: path in the TUF repository.
        fetch: gives one file of metadata by name.
        clock: None reads the device's own.

    Raises:
        TrustError: the metadata does not verify, is older than what was seen, has expired, is larger than metadata
            may be, or names no such target.
        UnavailableError: a file could not be fetched, or the child died.
    """
    metadata.mkdir(parents=True, exist_ok=True, mode=0o700)
    task = Task(root, str(metadata), target, clock or Clock.read())
    command = [sys.executable, "-P", "-m", "edge_agent.verifier"]  # -P: no code from the working folder
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    except OSError as error:
        raise UnavailableError(f"the process that checks signatures cannot be started: {error}") from error
    try:
        return _converse(child, task, fetch)
    except (OSError, struct.error, MalformedError) as error:
        raise UnavailableError(f"the process that checks signatures died: {error}") from error
    finally:
        child.kill()
        child.communicate()


def _converse(child: "subprocess.Popen[bytes]", task: Task, fetch: Fetch) -> Target:
    if child.stdin is None or child.stdout is None:
        raise UnavailableError("the process that checks signatures has no pipes")
    write(child.stdin, task)
    while True:
        answer: Answer = read(child.stdout, Answer)  # type: ignore[arg-type]  # unions are no `type[T]` to mypy
        if isinstance(answer, Ask):
            content = fetch(answer.name, answer.limit)
            if content is not None and len(content) > answer.limit:
                raise TrustError(f"{answer.name} has more than {answer.limit} bytes")
            write(child.stdin, Content(content))
        elif isinstance(answer, Failure):
            raise TrustError(answer.reason) if answer.trust else UnavailableError(answer.reason)
        else:
            return answer


def write(pipe: IO[bytes], message: msgspec.Struct) -> None:
    """Write one message of this conversation."""
    payload = codec.encode(message)
    pipe.write(struct.pack(">I", len(payload)) + payload)
    pipe.flush()


def read(pipe: IO[bytes], kind: type[T]) -> T:
    """Read one message of this conversation.

    Raises:
        struct.error: the other side is gone.
        MalformedError, TooLargeError: it speaks another language.
    """
    (size,) = struct.unpack(">I", pipe.read(4))
    return codec.decode(pipe.read(min(size, _FRAME_BYTES + 1)), kind, limit=_FRAME_BYTES)
