"""Labelled samples that apps hand in, kept for training on this device: encrypted, bounded, and never sent.

The folder holds a key and, for each model, segments named by one rising number. A segment is a row of records; a record
is a header (bytes that follow, samples, when), a nonce, and the safetensors of `x` and `y` under AES-256-GCM. What is
authenticated with it names the model, the segment and the place in it, so that no record passes for another. A segment
is only appended to by the start of the agent that made it: a record that a kill tore is the last of its file and is
dropped. Source: NIST SP 800-38D (nonces are random, so 2^32 records may share a key).
"""

import hashlib
import os
import secrets
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from contract import tensors
from contract.bundle import check_model
from contract.errors import ContractError
from edge_agent.errors import ConfigError, SampleError
from edge_agent.files import append, make_folder, remove, write_atomically
from edge_agent.samples import Samples

_HEADER = struct.Struct(">IId")
_NONCE_BYTES, _TAG_BYTES, _KEY_BYTES, _CHECK_BYTES = 12, 16, 32, 8
_SEGMENTS = 16  # the ring turns by so much of the quota, or of the time, at once
_RECORD_BYTES = 32 * 1024 * 1024
KEY = "key"


@dataclass
class _Segment:
    """What of a segment is known without its key: bytes, records, samples, when the first and the last were added."""

    path: Path
    size: int = 0
    records: int = 0
    samples: int = 0
    first: float = 0.0
    last: float = 0.0
    model: str = field(init=False)

    def __post_init__(self) -> None:
        self.model = self.path.parent.name


class SampleStore:
    """The writer. It imports `cryptography` at the first sample: 7 MB that a device without samples does not spend."""

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int,
        keep_s: float,
        clock: Callable[[], float],
        event: Callable[[str], None],
    ) -> None:
        """Look at what is there; nothing is made before the first sample.

        Args:
            folder: of the store, with mode 0700.
            quota_bytes: of all segments together; the oldest go.
            keep_s: seconds after which a sample goes.
            clock: seconds; it may stand still while the agent does not run.
            event: hears what the owner should know.
        """
        self.folder, self._quota, self._keep_s = folder, quota_bytes, keep_s
        self._clock, self._event = clock, event
        self._lock = threading.Lock()
        self._cipher: Any = None
        self._segments: dict[int, _Segment] = {}
        self._open: dict[str, int] = {}  # model to the segment that is appended to
        try:
            self._look()
        except OSError as error:
            event(f"{folder}: samples cannot be kept: {error.strerror}")

    def add(self, model: str, x: np.ndarray, y: np.ndarray) -> None:
        """Keep samples; they are on the disk when this returns.

        Args:
            model: whose input they are.
            x: raw samples, shape (n, *input_shape).
            y: int64 labels, shape (n,).

        Raises:
            SampleError: more than a sixteenth of the quota at a time.
            OSError: the disk does not take them.
        """
        content = tensors.dump({"x": np.ascontiguousarray(x), "y": np.asarray(y, np.int64)})
        size = _HEADER.size + _NONCE_BYTES + len(content) + _TAG_BYTES
        if size > min(self._quota // _SEGMENTS, _RECORD_BYTES):
            raise SampleError(
                f"{size} bytes of samples at a time, the limit is {min(self._quota // _SEGMENTS, _RECORD_BYTES)}: "
                "a sixteenth of samples.quota_bytes; send fewer"
            )
        with self._lock:
            now = self._clock()
            try:
                number = self._segment_for(check_model(model), size, now)
                self._append(number, self._segments[number], content, len(y), now)
            except BaseException:
                self._open.pop(model, None)  # a torn record ends its segment
                raise
            self._make_room(now)

    def counts(self) -> dict[str, int]:
        """Samples that are kept, by model."""
        found: dict[str, int] = {}
        with self._lock:
            self._make_room(self._clock())
            for segment in self._segments.values():
                found[segment.model] = found.get(segment.model, 0) + segment.samples
        return found

    def size(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return sum(segment.size for segment in self._segments.values())

    def not_before(self) -> float:
        """Samples that were added earlier than this have expired."""
        return self._clock() - self._keep_s

    def erase(self) -> None:
        """Forget all samples, and the key first: without it the rest is noise."""
        with self._lock:
            self._erase()

    def _look(self) -> None:
        if not self.folder.is_dir():
            return
        found = sorted(self.folder.glob("*/*.seg"))
        if found and read_key(self.folder) is None:
            self._erase()
            self._event(f"the key of the kept samples is missing or damaged; {len(found)} files of samples are lost")
            return
        for path in found:
            if path.stem.isdigit():
                with suppress(OSError):  # one that cannot be read is in nobody's way
                    self._segments[int(path.stem)] = _look_at(path)

    def _segment_for(self, model: str, size: int, now: float) -> int:
        number = self._open.get(model)
        if number is not None:
            segment = self._segments[number]
            young = abs(now - segment.first) < self._keep_s / _SEGMENTS
            if young and segment.size + size <= self._quota // _SEGMENTS:
                return number
        make_folder(self.folder / model)
        if self._cipher is None:
            self._cipher = cipher(read_key(self.folder) or self._make_key())
        number = max(self._segments, default=0) + 1
        while (path := self.folder / model / f"{number:010d}.seg").exists():  # left by one that could not be written
            number += 1
        self._segments[number] = _Segment(path, first=now, last=now)
        self._open[model] = number
        return number

    def _make_key(self) -> bytes:
        key = secrets.token_bytes(_KEY_BYTES)
        write_atomically(self.folder / KEY, key + _check(key))
        return key

    def _append(self, number: int, segment: _Segment, content: bytes, samples: int, now: float) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        header = _HEADER.pack(_NONCE_BYTES + len(content) + _TAG_BYTES, samples, now)
        sealed = self._cipher.encrypt(nonce, content, _bound(segment.model, number, segment.records, header))
        append(segment.path, header + nonce + sealed)
        segment.size += len(header) + len(nonce) + len(sealed)
        segment.records += 1
        segment.samples += samples
        segment.last = now

    def _make_room(self, now: float) -> None:
        for number in sorted(self._segments):
            expired = now - self._segments[number].last > self._keep_s
            full = sum(segment.size for segment in self._segments.values()) > self._quota
            if expired or full:
                segment = self._segments[number]
                if self._open.get(segment.model) == number:
                    del self._open[segment.model]
                remove(segment.path)
                del self._segments[number]

    def _erase(self) -> None:
        remove(self.folder / KEY)
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
        self._segments, self._open, self._cipher = {}, {}, None


def _look_at(path: Path) -> _Segment:
    segment = _Segment(path, size=path.stat().st_size)
    for header, _ in _headers(path):
        _, samples, at = header
        segment.samples += samples
        segment.first, segment.last = segment.first or at, at
    return segment


def newest(
    folder: Path, model: str, *, input_shape: tuple[int, ...], limit: int, not_before: float
) -> tuple[Samples | None, int]:
    """Read the newest samples of a model; for the training child.

    Args:
        folder: of the store.
        model: its name.
        input_shape: of one sample; others, of an older version of the model, are passed over.
        limit: most samples to take.
        not_before: of the store's clock; what was added earlier has expired.

    Returns:
        Samples, the newest record first, or None; and the number of records that were damaged or tampered with.
    """
    xs: list[np.ndarray] = []
    ys: list[np.ndarray] = []
    damaged, room = 0, limit
    try:
        key = read_key(folder)
    except OSError:
        key = None
    if key is None:
        return None, 0
    opener = cipher(key)
    paths = [path for path in (folder / check_model(model)).glob("*.seg") if path.stem.isdigit()]
    for path in sorted(paths, reverse=True):
        try:
            records = list(_headers(path))
        except OSError:
            damaged, records = damaged + 1, []
        for place in reversed(range(len(records))):
            (_, samples, at), offset = records[place]
            if room <= 0 or at < not_before:
                continue
            read = _unseal(opener, path, place, offset, samples)
            if read is None:
                damaged += 1
            elif read.x.shape[1:] == input_shape and read.y is not None:
                xs.append(read.x[:room])
                ys.append(read.y[:room])
                room -= len(xs[-1])
    return (Samples(np.concatenate(xs), np.concatenate(ys)) if xs else None), damaged


def _unseal(opener: Any, path: Path, place: int, offset: int, samples: int) -> Samples | None:
    from cryptography.exceptions import InvalidTag

    try:
        with path.open("rb") as file:
            file.seek(offset)
            header = file.read(_HEADER.size)
            body = file.read(_HEADER.unpack(header)[0])
        bound = _bound(path.parent.name, int(path.stem), place, header)
        arrays = tensors.load(opener.decrypt(body[:_NONCE_BYTES], body[_NONCE_BYTES:], bound))
    except (InvalidTag, ContractError, ValueError, OSError, struct.error):
        return None
    x, y = arrays["x"], arrays["y"]
    return Samples(x, y) if len(x) == len(y) == samples else None


def _headers(path: Path) -> Iterator[tuple[tuple[int, int, float], int]]:
    """Headers of the whole records of a segment, each with its offset; a torn end is left out."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        offset = 0
        while offset + _HEADER.size <= end:
            file.seek(offset)
            length, samples, at = _HEADER.unpack(file.read(_HEADER.size))
            after = offset + _HEADER.size + length
            if length > _RECORD_BYTES or after > end:
                return
            yield (length, samples, at), offset
            offset = after


def _bound(model: str, number: int, place: int, header: bytes) -> bytes:
    """What a record is bound to."""
    return b"fieldfare samples 1\0" + model.encode() + b"\0" + struct.pack(">QQ", number, place) + header


def read_key(folder: Path) -> bytes | None:
    """The key, or None where it is missing or damaged.

    Raises:
        OSError: it cannot be read now; that is no reason to give up what it opens.
    """
    try:
        content = (folder / KEY).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    key = content[:_KEY_BYTES]
    return key if len(key) == _KEY_BYTES and content[_KEY_BYTES:] == _check(key) else None


def _check(key: bytes) -> bytes:
    """Tells a damaged key from a good one; of no use to who has not the key."""
    return hashlib.sha256(b"fieldfare samples key\0" + key).digest()[:_CHECK_BYTES]


def cipher(key: bytes) -> Any:
    """AES-256-GCM.

    Raises:
        ConfigError: `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise ConfigError(f"samples cannot be kept without cryptography: {error}") from error
    return AESGCM(key)
