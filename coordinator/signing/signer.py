"""The signer: a process of its own with its own keys, off the coordinator's machine in production.

It asks the coordinator what waits, looks at each bundle itself, and hands back signed metadata. Whoever holds the
coordinator can ask for signatures but not make them, and the signer signs only what is a whole bundle under the
very name that its manifest gives it.
"""

import hashlib
import logging
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tuf.api.metadata import Key

from contract import bundle, targets
from contract.errors import ContractError
from coordinator.client import Client, ClientError
from coordinator.errors import InvalidError, SetupError
from coordinator.files import write_private
from coordinator.records import SigningRequest
from coordinator.signing import keys, repository
from coordinator.signing.repository import BUNDLES, OFFLINE_ROLES, ONLINE_ROLES, Target

logger = logging.getLogger(__name__)

KEYS = "keys"
METADATA = "metadata"


class Coordinator(Protocol):
    """What the signer needs of `coordinator.client.Client`."""

    def get(self, path: str, kind: type[Any], **query: object) -> Any:
        """GET and decode."""
        ...

    def publish_repository(self, metadata: dict[str, str]) -> dict[str, Any]:
        """Hand in the first metadata."""
        ...

    def signing_requests(self) -> list[SigningRequest]:
        """What waits."""
        ...

    def signing_bundle(self, sha256: str) -> bytes:
        """A bundle that waits."""
        ...

    def submit_signature(self, id: str, metadata: str) -> SigningRequest:  # noqa: A002 its name
        """Hand in signed metadata."""
        ...

    def refuse_signature(self, id: str, reason: str) -> SigningRequest:  # noqa: A002 its name
        """Say no."""
        ...


class Signer:
    """Keys and the metadata that they signed, in one folder; all of it survives a kill at any moment."""

    def __init__(self, folder: Path) -> None:
        """Use a signer's folder; keys are made where they are missing."""
        self._folder = folder
        self._signers = {role: keys.ensure(folder / KEYS, role) for role in OFFLINE_ROLES}
        (folder / METADATA).mkdir(mode=0o700, exist_ok=True)

    def begin(self, coordinator: Coordinator, now: float) -> None:
        """Publish the first metadata where the coordinator has none.

        Raises:
            SetupError: the coordinator's repository has another signer's root, or its online keys changed.
        """
        answer = coordinator.get("/v1/signing/repository", dict[str, Any])
        if not self._path("root").exists():
            if answer["initialised"]:
                raise SetupError(f"{self._folder}: this coordinator trusts another signer; use that signer's folder")
            online = {role: _key(answer["keys"][role]) for role in ONLINE_ROLES}
            made = repository.initial(self._signers, online, now)
            for role in reversed(OFFLINE_ROLES):  # root last: where it is, the others are
                write_private(self._path(role), made[role])
        if not answer["initialised"]:
            first = {role: self._path(role).read_text() for role in OFFLINE_ROLES}
            coordinator.publish_repository(first)
            logger.info("published the first root metadata")

    def work(self, coordinator: Coordinator, now: float) -> int:
        """Answer every request that waits; how many there were."""
        requests = coordinator.signing_requests()
        for request in requests:
            try:
                metadata = self.sign(request, coordinator.signing_bundle(request.bundle_sha256), now)
            except (ContractError, InvalidError) as error:
                logger.warning("refused %s: %s", request.target, error)
                coordinator.refuse_signature(request.id, str(error))
                continue
            coordinator.submit_signature(request.id, metadata.decode())
            logger.info("signed %s", request.target)
        return len(requests)

    def sign(self, request: SigningRequest, content: bytes, now: float) -> bytes:
        """Look at a bundle and sign for it. Signing again what is signed gives the same bytes.

        Returns: the `bundles` metadata, which is also in the folder.

        Raises:
            ContractError: not a bundle.
            InvalidError: another digest, size or name than the request says, or a name that is taken.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest != request.bundle_sha256 or len(content) != request.size:
            raise InvalidError("the bundle is not the one that was asked for: its digest or size differs")
        manifest = bundle.unpack(content).manifest
        name = bundle.target_path(manifest.model, manifest.version, manifest.variant, digest)
        if name != request.target:
            raise InvalidError(f"the bundle's manifest makes it {name}, not {request.target}")
        current = self._path(BUNDLES).read_bytes()
        if repository.target(current, name) not in (None, Target(request.size, digest)):
            raise InvalidError(f"{name} was signed with another content")
        custom = msgspec.to_builtins(targets.custom(manifest))
        target = Target(request.size, digest)
        signer = self._signers[BUNDLES]
        after = repository.add_target(current, name, target, custom=custom, signer=signer, now=now)
        if after != current:
            write_private(self._path(BUNDLES), after)
        return after

    def _path(self, role: str) -> Path:
        return self._folder / METADATA / f"{role}.json"


def _key(described: dict[str, Any]) -> Key:
    return Key.from_dict(described.pop("keyid"), described)


def create(folder: Path) -> None:
    """Make a signer's keys where they are missing."""
    Signer(folder)


def run(
    folder: Path, url: str, ca: Path, token: str, *, poll_s: float = 0.5, stop: threading.Event | None = None
) -> None:
    """Sign what waits until `stop` is set; a coordinator that is away is waited for.

    Args:
        folder: of this signer.
        url: of the coordinator.
        ca: PEM file of the certificate authority that the coordinator's certificate comes from.
        token: of the signer, not of the operator.
        poll_s: seconds between two looks.
        stop: ends the loop.

    Raises:
        SetupError: keys that cannot be read, or a coordinator that trusts another signer.
    """
    stop = stop or threading.Event()
    signer, begun, said = Signer(folder), False, ""
    with Client(url, ca, token, retry_s=0.0) as client:
        while not stop.is_set():
            try:
                if not begun:
                    signer.begin(client, time.time())
                    begun = True
                signer.work(client, time.time())
            except ClientError as error:
                if str(error) != said:  # once, not twice a second
                    logger.warning("the coordinator did not answer as hoped: %s", error)
                said = str(error)
            stop.wait(poll_s)
