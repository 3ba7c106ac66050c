"""Does the fleet's signer vouch for this bundle? Asked of python-tuf in a short-lived child process.

The child costs 22 MB and 100 ms and gives both back. It has no network: the parent hands it each file of metadata
through its standard input. Messages are MessagePack, each after its length in four bytes. What the child verified, it
keeps in the metadata folder, so that no older state can be passed off as new.
"""

import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TypeVar

import msgspec

from contract import codec, limits
from contract.errors import MalformedError
from contract.targets import Custom
from edge_agent.errors import TrustError, UnavailableError

T = TypeVar("T")
_FRAME_BYTES = limits.METADATA_BYTES + 1024


class Task(msgspec.Struct, frozen=True, tag_field="type"):
    """Parent to child, first: what to look up, and the root of trust from enrolment."""

    root: bytes
    metadata: str
    target: str


class Content(msgspec.Struct, frozen=True, tag_field="type"):
    """Parent to child: the file that was asked for, or None."""

    content: bytes | None


class Ask(msgspec.Struct, frozen=True, tag_field="type"):
    """Child to parent: the next file that is needed."""

    name: str


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


def lookup(root: bytes, metadata: Path, target: str, fetch: Callable[[str], bytes | None]) -> Target:
    """Refresh the trusted metadata and look one target up.

    Args:
        root: the root metadata from enrolment.
        metadata: folder of the metadata that was verified before.
        target: path in the TUF repository.
        fetch: gives one file of metadata by name, None where there is none.

    Raises:
        TrustError: the metadata does not verify, is older than what was seen, has expired, or names no such target.
        UnavailableError: a file could not be fetched, or the child died.
    """
    metadata.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [sys.executable, "-P", "-m", "edge_agent.trust"]  # -P: no code from the working folder
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        return _converse(child, Task(root, str(metadata), target), fetch)
    except (OSError, struct.error, MalformedError) as error:
        raise UnavailableError(f"the process that checks signatures died: {error}") from error
    finally:
        child.kill()
        child.communicate()


def _converse(child: "subprocess.Popen[bytes]", task: Task, fetch: Callable[[str], bytes | None]) -> Target:
    if child.stdin is None or child.stdout is None:
        raise UnavailableError("the process that checks signatures has no pipes")
    _write(child.stdin, task)
    while True:
        answer: Answer = _read(child.stdout, Answer)  # type: ignore[arg-type]  # unions are no `type[T]` to mypy
        if isinstance(answer, Ask):
            _write(child.stdin, Content(fetch(answer.name)))
        elif isinstance(answer, Failure):
            raise TrustError(answer.reason) if answer.trust else UnavailableError(answer.reason)
        else:
            return answer


def _write(pipe: IO[bytes], message: msgspec.Struct) -> None:
    payload = codec.encode(message)
    pipe.write(struct.pack(">I", len(payload)) + payload)
    pipe.flush()


def _read(pipe: IO[bytes], kind: type[T]) -> T:
    (size,) = struct.unpack(">I", pipe.read(4))
    return codec.decode(pipe.read(min(size, _FRAME_BYTES + 1)), kind, limit=_FRAME_BYTES)


def main() -> None:
    """The child: answer one task from standard input on standard output."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    task = _read(stdin, Task)

    def fetch(name: str) -> bytes | None:
        _write(stdout, Ask(name))
        return _read(stdin, Content).content

    with suppress(BrokenPipeError, struct.error):  # the parent died; so do we, without a word
        _write(stdout, _check(task, fetch))


def _check(task: Task, fetch: Callable[[str], bytes | None]) -> Target | Failure:
    from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError, RepositoryError
    from tuf.ngclient.config import UpdaterConfig
    from tuf.ngclient.fetcher import FetcherInterface
    from tuf.ngclient.updater import Updater

    class Fetcher(FetcherInterface):
        """python-tuf's idea of a network: the pipe to the parent."""

        def _fetch(self, url: str) -> Iterator[bytes]:
            content = fetch(url.rpartition("/")[2])
            if content is None:
                raise DownloadHTTPError(f"the repository has no {url}", 404)
            return iter([content])

    try:
        updater = Updater(
            task.metadata,
            "fleet://metadata/",
            fetcher=Fetcher(),
            config=UpdaterConfig(root_max_length=limits.METADATA_BYTES, targets_max_length=limits.METADATA_BYTES),
            bootstrap=task.root,
        )
        info = updater.get_targetinfo(task.target)
    except ExpiredMetadataError as error:
        now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
        return Failure(f"ExpiredMetadataError: {error}; this device's clock says {now}", trust=True)
    except RepositoryError as error:
        return Failure(f"{type(error).__name__}: {error}", trust=True)
    except BrokenPipeError:
        raise
    except (DownloadError, OSError) as error:
        return Failure(f"{type(error).__name__}: {error}", trust=False)
    if info is None or "sha256" not in info.hashes:
        return Failure(f"the signed metadata names no target {task.target}", trust=True)
    try:
        custom = msgspec.convert(info.custom, Custom)
    except msgspec.ValidationError as error:
        return Failure(f"the signed metadata does not say what {task.target} needs: {error}", trust=True)
    return Target(
        info.length,
        info.hashes["sha256"],
        custom.hardware_classes,
        custom.min_agent_version,
        custom.min_runtime_version,
        custom.blocks,
    )


if __name__ == "__main__":
    main()
