"""Where the coordinator keeps things: metadata in a database, large immutable data as content-addressed blobs.

Every sub-package declares its tables on `metadata`; `coordinator/migrations` creates them.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import IO, Any
from uuid import uuid4

import fsspec
import msgspec
from sqlalchemy import JSON, Engine, MetaData, create_engine, event
from sqlalchemy.exc import ArgumentError

from contract import blocks, limits, topics
from contract.errors import TooLargeError
from contract.messages import BlobRef
from coordinator.errors import NotFoundError, SetupError

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Json = JSON  # one name for the column type, so that it can become JSONB where that helps


def open_engine(url: str) -> Engine:
    """Open a database; SQLite gets WAL, foreign keys, and writers that wait for each other.

    Args:
        url: SQLAlchemy URL, for example `sqlite:////var/lib/fieldfare/coordinator.sqlite` or `postgresql+psycopg://…`.

    Raises:
        SetupError: not a URL, or no driver for it.
    """
    try:
        engine = create_engine(
            url,
            pool_pre_ping=True,
            hide_parameters=True,  # errors go to logs; what devices and operators sent does not
            json_serializer=_to_json,
        )
    except (ArgumentError, ImportError) as error:  # neither repeats the URL, which may hold a password
        raise SetupError(f"the configured database cannot be used: {error}") from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        event.listen(engine, "begin", _sqlite_begin)
    return engine


def _to_json(value: object) -> str:
    """JSON as every database takes it: what is not finite becomes null, since PostgreSQL knows no NaN."""
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except ValueError:
        return msgspec.json.encode(value, order="sorted").decode()


def _sqlite_connect(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, see _sqlite_begin
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "busy_timeout=30000", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Any) -> None:
    # Take the write lock at once: a read transaction that turns into a write one fails instead of waiting.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class Blobs:
    """Content-addressed storage over fsspec; a blob is named by the SHA-256 of its bytes and never changes."""

    def __init__(self, url: str) -> None:
        """Use the folder at an fsspec URL, for example `file:///var/lib/fieldfare/blobs`."""
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._fs.makedirs(self._root, exist_ok=True)

    def put(self, data: bytes) -> BlobRef:
        """Store bytes; storing the same bytes again changes nothing.

        Raises:
            TooLargeError: more than `limits.ARTIFACT_BYTES`.
        """
        if len(data) > limits.ARTIFACT_BYTES:
            raise TooLargeError("a blob", size=len(data), limit=limits.ARTIFACT_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not self._fs.exists(path):
            incoming = f"{self._root}/incoming-{uuid4().hex}"
            self._fs.pipe_file(incoming, data)
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._fs.mv(incoming, path)  # a rename on a local disk: the blob appears whole or not at all
        return BlobRef(digest, len(data))

    def put_artifact(self, data: bytes) -> BlobRef:
        """Store bytes that devices pull in blocks, and their list of blocks; a single block needs none.

        Raises:
            TooLargeError: more than `limits.ARTIFACT_BYTES`.
        """
        ref = self.put(data)
        if blocks.list_digest(data) is None:
            return ref
        return BlobRef(ref.sha256, ref.size, self.put(blocks.digests(data)).sha256)

    def get(self, digest: str) -> bytes:
        """Bytes of a blob.

        Raises:
            NotFoundError: no such blob.
        """
        try:
            return bytes(self._fs.cat_file(self._path(digest)))
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest}") from error

    def block(self, digest: str, index: int) -> bytes:
        """Block `index` of `limits.BLOCK_BYTES`; shorter at the end, empty past it.

        Raises:
            NotFoundError: no such blob.
        """
        with self.open(digest) as file:
            file.seek(index * limits.BLOCK_BYTES)
            return bytes(file.read(limits.BLOCK_BYTES))

    def size(self, digest: str) -> int:
        """Bytes of a blob.

        Raises:
            NotFoundError: no such blob.
        """
        try:
            return int(self._fs.size(self._path(digest)))
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest}") from error

    def open(self, digest: str) -> IO[bytes]:
        """A blob as a file that can be read from any place; the caller closes it.

        Raises:
            NotFoundError: no such blob.
        """
        try:
            file: IO[bytes] = self._fs.open(self._path(digest), "rb")
        except FileNotFoundError as error:
            raise NotFoundError(f"no blob {digest}") from error
        return file

    def exists(self, digest: str) -> bool:
        """Whether the blob is stored."""
        return bool(self._fs.exists(self._path(digest)))

    def _path(self, digest: str) -> str:
        topics.check_sha256(digest)
        return f"{self._root}/{digest[:2]}/{digest}"


@dataclass(frozen=True)
class Storage:
    """What every service of the coordinator stands on."""

    engine: Engine
    blobs: Blobs
