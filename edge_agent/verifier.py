"""The child of `trust`: python-tuf's client over a pipe, with a sense of time that a wrong clock cannot spoil.

TUF's protection against a freeze compares expiry with the time. A device may have no battery for its clock, so it
never takes an earlier time than it has proof of: the day on which this agent was made, the times at which the root
and the timestamp were signed that it trusts now, and for how long it has been up since it first saw that timestamp
(`seen.json`). It never takes a later one from its clock for good: a clock at 2100 makes metadata look expired until
it is set, and nothing of it is kept.

The proof of a timestamp counts only while the root names the key that signed it. Where a stolen key signed one from
the future, replacing that key heals the devices.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from struct import error as struct_error

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.api.metadata import Metadata, Root, Signed, TargetFile, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from contract import limits
from contract.targets import CREATED, Custom
from edge_agent.files import write_atomically
from edge_agent.trust import Ask, Clock, Content, Failure, Fetch, Target, Task, read, write

_FOREVER = 2**36  # seconds; larger numbers are no times
_SEEN = "seen.json"
_CONFIG = UpdaterConfig(
    root_max_length=limits.ROOT_BYTES,
    timestamp_max_length=limits.TIMESTAMP_BYTES,
    snapshot_max_length=limits.SNAPSHOT_BYTES,
    targets_max_length=limits.METADATA_BYTES,
)


class Clocked(Updater):
    """python-tuf's client, told the time: the one place that reaches into it, for want of a way to say it (tuf 7).

    Attributes:
        proven: the latest time that there is proof of, seconds since the epoch.
    """

    def __init__(self, task: Task, fetcher: FetcherInterface) -> None:
        super().__init__(task.metadata, "fleet://metadata/", fetcher=fetcher, config=_CONFIG, bootstrap=task.root)
        self._clock, self._folder = task.clock, Path(task.metadata)
        self.proven = task.clock.built

    def _load_timestamp(self) -> None:
        root = self._trusted_set.root  # the newest: python-tuf has followed every rotation by now
        self._learn(_made(root))
        kept = _made(_trusted_timestamp(self._folder / "timestamp.json", root))
        seen = _Seen.of(self._folder, kept, self._clock)
        self._learn(kept + seen.elapsed)
        seen.keep(self._folder)  # also where nothing newer comes
        super()._load_timestamp()
        made = _made(self._trusted_set.timestamp)
        if made != kept:
            seen = _Seen(made, 0.0, self._clock.boot, self._clock.uptime)
            seen.keep(self._folder)
        self._learn(made + seen.elapsed)

    def _learn(self, proof: float) -> None:
        self.proven = max(self.proven, proof)
        self._trusted_set.reference_time = datetime.fromtimestamp(max(self.proven, min(self._clock.now, _FOREVER)), UTC)


def _made(signed: Signed | None) -> float:
    """When metadata was made, as its signers say; 0 where they do not."""
    made = signed.unrecognized_fields.get(CREATED) if signed is not None else None
    if signed is None or not isinstance(made, int) or not 0 <= made <= min(signed.expires.timestamp(), _FOREVER):
        return 0.0
    return float(made)


class _Seen(msgspec.Struct, frozen=True):
    """For how long this device has been up since it first saw the timestamp that was made at `made`.

    Attributes:
        elapsed: seconds in all boots, as far as they were noted.
        boot, uptime: when it was noted last.
    """

    made: float
    elapsed: float
    boot: str
    uptime: float

    @classmethod
    def of(cls, folder: Path, made: float, clock: Clock) -> "_Seen":
        """As of now."""
        try:
            noted = msgspec.json.decode((folder / _SEEN).read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            noted = None
        if noted is None or noted.made != made or not 0 <= noted.elapsed < _FOREVER:
            return cls(made, 0.0, clock.boot, clock.uptime)
        more = max(0.0, clock.uptime - noted.uptime) if clock.boot and clock.boot == noted.boot else 0.0
        return cls(made, noted.elapsed + more, clock.boot, clock.uptime)

    def keep(self, folder: Path) -> None:
        """Write it whole or not at all."""
        write_atomically(folder / _SEEN, msgspec.json.encode(self))


def _trusted_timestamp(path: Path, root: Root) -> Timestamp | None:
    """The timestamp that was verified last, where the root still names its key."""
    try:
        metadata = Metadata[Timestamp].from_bytes(path.read_bytes())
        root.verify_delegate(Timestamp.type, metadata.signed_bytes, metadata.signatures)
    except (OSError, DeserializationError, RepositoryError, ValueError):
        return None
    return metadata.signed if isinstance(metadata.signed, Timestamp) else None


class PipeFetcher(FetcherInterface):
    """python-tuf's idea of a network: the pipe to the parent."""

    def __init__(self, fetch: Fetch) -> None:
        self._ask = fetch

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """One file, never more than `max_length` bytes of it."""
        content = self._ask(url.rpartition("/")[2], max_length)
        if content is None:
            raise DownloadHTTPError(f"the repository has no {url}", 404)
        if len(content) > max_length:
            raise DownloadLengthMismatchError(f"{url} has more than {max_length} bytes")
        return content

    def _fetch(self, url: str) -> Iterator[bytes]:
        raise DownloadError(f"{url}: only metadata is fetched here")


def check(task: Task, fetch: Fetch) -> Target | Failure:
    """Answer one task."""
    client = None
    for litter in [*Path(task.metadata).glob("tmp*"), *Path(task.metadata).glob(f".{_SEEN}.*")]:
        litter.unlink()  # half-written files of a child that was killed
    try:
        client = Clocked(task, PipeFetcher(fetch))
        return _answer(task.target, client.get_targetinfo(task.target))
    except ExpiredMetadataError as error:
        return Failure(f"ExpiredMetadataError: {error}; {_times(task, client)}", trust=True)
    except (RepositoryError, DownloadLengthMismatchError) as error:
        return Failure(f"{type(error).__name__}: {error}", trust=True)
    except BrokenPipeError:
        raise
    except (DownloadError, OSError) as error:
        return Failure(f"{type(error).__name__}: {error}", trust=False)


def _answer(path: str, file: TargetFile | None) -> Target | Failure:
    if file is None or "sha256" not in file.hashes:
        return Failure(f"the signed metadata names no target {path}", trust=True)
    try:
        custom = msgspec.convert(file.custom, Custom)
    except msgspec.ValidationError as error:
        return Failure(f"the signed metadata does not say what {path} needs: {error}", trust=True)
    return Target(
        file.length,
        file.hashes["sha256"],
        custom.hardware_classes,
        custom.min_agent_version,
        custom.min_runtime_version,
        custom.blocks,
    )


def _times(task: Task, client: Clocked | None) -> str:
    proven = client.proven if client is not None else task.clock.built
    said = f"this device's clock says {_date(task.clock.now)}"
    if task.clock.now < proven:
        return f"{said}, but it is {_date(proven)} at least by what was signed and by its uptime"
    return f"{said}, and signatures prove no later time than {_date(proven)}; set the clock if it is wrong"


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(seconds, _FOREVER)))


def main() -> None:
    """Answer one task from standard input on standard output."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    task = read(stdin, Task)

    def fetch(name: str, limit: int) -> bytes | None:
        write(stdout, Ask(name, limit))
        return read(stdin, Content).content

    with suppress(BrokenPipeError, struct_error):  # the parent died; so do we, without a word
        write(stdout, check(task, fetch))


if __name__ == "__main__":
    main()
