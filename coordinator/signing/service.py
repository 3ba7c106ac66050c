"""The repository as devices see it, and the bundles that wait for the signer."""

import logging
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from securesystemslib.signer import CryptoSigner
from sqlalchemy import Connection, RowMapping, select, update
from tuf.api.metadata import Key

from contract import codec
from coordinator.errors import ConflictError, InvalidError, NotFoundError, SetupError
from coordinator.records import SigningRequest
from coordinator.signing import checks, keys, repository
from coordinator.signing.checks import Chain
from coordinator.signing.repository import BUNDLES, ONLINE_ROLES, Target
from coordinator.signing.tables import signing_requests, tuf_metadata
from coordinator.sql import take_turns
from coordinator.storage import Storage

REFRESH_S = 60.0  # how often expiry is looked at
_TURN = "signing"
_KEPT_S = 86400.0  # of a version that a device may still be about to fetch
_SOON_S = 30 * 86400.0  # before metadata expires that people must renew

logger = logging.getLogger(__name__)

_deflate = lru_cache(maxsize=16)(codec.deflate)


@lru_cache(maxsize=8)
def _expires(content: bytes) -> float:
    return repository.version_and_expiry(content)[1]


class Signing:
    """The TUF repository in the database, with the online keys; the signer holds the others."""

    def __init__(self, storage: Storage, keys_folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Use `storage`; the online keys are made in `keys_folder` where there are none."""
        self._engine = storage.engine
        self._blobs = storage.blobs
        self._clock = clock
        self._keys_folder = keys_folder
        self._online()
        self._refreshed_at = 0.0

    def online_keys(self) -> dict[str, Key]:
        """Newest public keys of snapshot and timestamp: those that the next root should name."""
        return {role: signers[-1].public_key for role, signers in self._online().items()}

    def _online(self) -> dict[str, list[CryptoSigner]]:
        """Every key that this coordinator has for a role, oldest first; read anew, because a person may add one."""
        return {role: keys.online(self._keys_folder, role) for role in ONLINE_ROLES}

    # what others ask in their own transaction

    def request(
        self, connection: Connection, *, sha256: str, target: str, size: int, custom: Mapping[str, Any], now: float
    ) -> str:
        """Ask the signer for a bundle; asking again for the same bundle changes nothing. Returns the request's id."""
        query = select(signing_requests.c.id).where(signing_requests.c.bundle_sha256 == sha256)
        found = connection.execute(query).scalar()
        if found is not None:
            return str(found)
        id = uuid4().hex  # noqa: A001 its name
        row = {"id": id, "bundle_sha256": sha256, "target": target, "size": size, "custom": dict(custom)}
        connection.execute(signing_requests.insert().values(**row, state="pending", reason="", created_at=now))
        return id

    def state(self, connection: Connection, sha256: str) -> tuple[str, str] | None:
        """State (`pending`, `signed`, `refused`) and reason of a bundle's request; None if nobody asked."""
        query = select(signing_requests.c.state, signing_requests.c.reason)
        row = connection.execute(query.where(signing_requests.c.bundle_sha256 == sha256)).first()
        return (row.state, row.reason) if row is not None else None

    def is_signed(self, connection: Connection, sha256: str) -> bool:
        """Whether a bundle is in the published metadata."""
        found = self.state(connection, sha256)
        return found is not None and found[0] == "signed"

    def is_list(self, connection: Connection, sha256: str) -> bool:
        """Whether this is the list of blocks of a bundle in the published metadata."""
        listed = signing_requests.c.custom["blocks"].as_string() == sha256
        query = select(signing_requests.c.id).where(listed, signing_requests.c.state == "signed")
        return connection.execute(query.limit(1)).first() is not None

    def metadata(self, connection: Connection, name: str) -> bytes | None:
        """One file of the repository as a TUF client names it, for example `timestamp.json` or `2.snapshot.json`."""
        content = connection.execute(select(tuf_metadata.c.content).where(tuf_metadata.c.name == name)).scalar()
        return bytes(content) if content is not None else None

    def packed(self, connection: Connection, name: str) -> bytes | None:
        """The same as it travels; a whole fleet asks for the same few files."""
        content = self.metadata(connection, name)
        return _deflate(content) if content is not None else None

    def root(self, connection: Connection) -> bytes:
        """The newest root metadata, from which devices that enrol begin to trust.

        Raises:
            ConflictError: no signer has begun the repository.
        """
        content = self._latest(connection, "root")
        if content is None:
            raise ConflictError("the signer has not published its root metadata yet; start it and try again")
        return content

    def expiry(self, connection: Connection) -> dict[str, float]:
        """When root, targets and bundles metadata expire, in seconds since the epoch; nothing before they are there."""
        chain = self._chain(connection)
        return {} if chain is None else {role: _expires(getattr(chain, role)) for role in Chain._fields}

    # HTTP, for the signer

    def requests(self, *, state: str = "pending") -> list[SigningRequest]:
        """Requests in a state, oldest first."""
        query = select(signing_requests).where(signing_requests.c.state == state)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(signing_requests.c.created_at, signing_requests.c.id)).mappings()
            return [_record(row) for row in rows]

    def bundle(self, sha256: str) -> bytes:
        """Bytes of a bundle that somebody asked to sign.

        Raises:
            NotFoundError: nobody did.
        """
        with self._engine.begin() as connection:
            if self.state(connection, sha256) is None:
                raise NotFoundError(f"no signature was asked for bundle {sha256}")
        return self._blobs.get(sha256)

    def chain(self) -> Chain | None:
        """The newest root, targets and bundles metadata; None until somebody has begun the repository."""
        with self._engine.begin() as connection:
            return self._chain(connection)

    def publish(self, files: Mapping[str, bytes]) -> None:
        """Take root, targets and bundles metadata from a ceremony; what is published already changes nothing.

        Args:
            files: by name, for example `2.root.json`; all that belongs together at once.

        Raises:
            InvalidError: it does not verify.
            ConflictError: another file of that name is published.
        """
        now = self._clock()
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            fresh = {}
            for name, content in files.items():
                published = self.metadata(connection, name)
                if published is None:
                    fresh[name] = content
                elif published != content:
                    raise ConflictError(f"another {name[:80]} is published already; this repository has other keys")
            if fresh:
                self._accept(connection, fresh, now)

    def submit(self, id: str, metadata: bytes) -> SigningRequest:  # noqa: A002 its name
        """Check and publish the next `bundles` metadata; the same again changes nothing.

        Raises:
            NotFoundError: no such request.
            InvalidError: the metadata does not verify, or does not hold the request's bundle.
            ConflictError: no repository, or the request was refused.
        """
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            request = self._request(connection, id)
            chain = self._chain(connection)
            if chain is None:
                raise ConflictError("the repository has not begun; publish its root metadata first")
            if request.state == "signed" and chain.bundles == metadata:
                return request
            if request.state != "pending":
                raise ConflictError(f"request {request.id} is {request.state}")
            version, _ = repository.version_and_expiry(metadata)
            new = self._accept(connection, {f"{version}.{BUNDLES}.json": metadata}, self._clock())
            if request.target not in new:
                raise InvalidError(f"the metadata does not hold {request.target}")
            return self._request(connection, id)

    def _accept(self, connection: Connection, files: Mapping[str, bytes], now: float) -> list[str]:
        """Check files, publish them under a new snapshot, and mark the bundles that are new; which ones these are."""
        query = select(signing_requests).where(signing_requests.c.state == "pending")
        expected = {row.target: Target(row.size, row.bundle_sha256) for row in connection.execute(query)}
        online = {role: [key.public_key.keyid for key in signers] for role, signers in self._online().items()}
        current = self._chain(connection)
        update_ = checks.check_update(current, files, online=online, expected=expected, now=now)
        for name, content in files.items():
            self._put(connection, name, content, now)
        self._publish(connection, update_.chain, now)
        signed = signing_requests.c.target.in_(update_.new)
        connection.execute(update(signing_requests).where(signed).values(state="signed", answered_at=now))
        return update_.new

    def refuse(self, id: str, reason: str) -> SigningRequest:  # noqa: A002 its name
        """The signer will not sign this bundle.

        Raises:
            NotFoundError: no such request.
            ConflictError: it is signed.
        """
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            if self._request(connection, id).state == "signed":
                raise ConflictError(f"request {id} is signed")
            values = {"state": "refused", "reason": reason[:2000], "answered_at": self._clock()}
            connection.execute(update(signing_requests).where(signing_requests.c.id == id).values(**values))
            return self._request(connection, id)

    def tick(self, now: float) -> None:
        """Renew timestamp and snapshot when half of their life is over."""
        if now - self._refreshed_at < REFRESH_S:
            return
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            content, chain = self.metadata(connection, "timestamp.json"), self._chain(connection)
            if content is not None and chain is not None:
                _, expires = repository.version_and_expiry(content)
                if expires - now < repository.TIMESTAMP_LIFE.total_seconds() / 2:
                    self._publish(connection, chain, now)
                    self._warn(connection, now)
        self._refreshed_at = now

    def _warn(self, connection: Connection, now: float) -> None:
        """Say what a ceremony must renew soon; as often as the timestamp is signed."""
        for role, at in self.expiry(connection).items():
            if at - now < _SOON_S:
                days = max(0, int((at - now) / 86400))
                logger.warning("%s metadata expires in %d days; devices refuse everything then", role, days)

    def _publish(self, connection: Connection, chain: Chain, now: float) -> None:
        """Write snapshot and timestamp over the newest targets and bundles."""
        last = self._latest(connection, "snapshot")
        version = repository.version_and_expiry(last)[0] + 1 if last is not None else 1
        signer = self._signer(chain.root, "snapshot")
        snapshot = repository.snapshot(version, chain.bundles, chain.targets, signer=signer, now=now)
        self._put(connection, f"{version}.snapshot.json", snapshot, now)
        before = self.metadata(connection, "timestamp.json")
        next_version = repository.version_and_expiry(before)[0] + 1 if before is not None else 1
        signer = self._signer(chain.root, "timestamp")
        timestamp = repository.timestamp(next_version, version, signer=signer, now=now)
        self._put(connection, "timestamp.json", timestamp, now)
        for role in ("targets", BUNDLES, "snapshot"):
            self._forget(connection, role, now)

    def _forget(self, connection: Connection, role: str, now: float) -> None:
        """Drop old versions, all but the newest two; a device in the midst of an older one starts anew. Roots stay."""
        query = select(tuf_metadata.c.name).where(
            tuf_metadata.c.name.like(f"%.{role}.json"), tuf_metadata.c.created_at < now - _KEPT_S
        )
        last = max(self._versions(connection, role), default=0)
        gone = [name for name in connection.execute(query).scalars() if int(name.split(".")[0]) < last - 1]
        connection.execute(tuf_metadata.delete().where(tuf_metadata.c.name.in_(gone)))

    def _signer(self, root: bytes, role: str) -> CryptoSigner:
        """The key of ours that the root names for an online role."""
        named = {key.keyid for key in repository.holders(root, role).keys}
        for signer in self._online()[role]:
            if signer.public_key.keyid in named:
                return signer
        raise SetupError(f"{self._keys_folder}: no key that the root metadata names for {role}; put it back there")

    def _chain(self, connection: Connection) -> Chain | None:
        found = [self._latest(connection, role) for role in Chain._fields]
        return Chain(*(content for content in found if content is not None)) if None not in found else None

    def _latest(self, connection: Connection, role: str) -> bytes | None:
        versions = self._versions(connection, role)
        return self.metadata(connection, f"{max(versions)}.{role}.json") if versions else None

    def _versions(self, connection: Connection, role: str) -> list[int]:
        names = connection.execute(select(tuf_metadata.c.name).where(tuf_metadata.c.name.like(f"%.{role}.json")))
        return [int(name.split(".")[0]) for name in names.scalars()]

    def _put(self, connection: Connection, name: str, content: bytes, now: float) -> None:
        connection.execute(tuf_metadata.delete().where(tuf_metadata.c.name == name))
        connection.execute(tuf_metadata.insert().values(name=name, content=content, created_at=now))

    def _request(self, connection: Connection, id: str) -> SigningRequest:  # noqa: A002 its name
        row = connection.execute(select(signing_requests).where(signing_requests.c.id == id)).mappings().first()
        if row is None:
            raise NotFoundError(f"no signing request {id[:64]!r}")
        return _record(row)


def _record(row: RowMapping) -> SigningRequest:
    return SigningRequest(
        id=row["id"],
        bundle_sha256=row["bundle_sha256"],
        target=row["target"],
        size=row["size"],
        custom=row["custom"],
        state=row["state"],
        reason=row["reason"] or None,
    )
