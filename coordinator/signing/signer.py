"""The signer of bundles: a process of its own with its own key, off the coordinator's machine in production.

It asks the coordinator what waits, looks at each bundle itself, and hands back signed metadata. Whoever holds the
coordinator can ask for signatures but not make them, and the signer signs only what is a whole bundle under the
very name that its manifest gives it; by policy only when a person says so.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from securesystemslib.signer import Signer as Key

from contract import blocks, bundle, targets
from contract.bundle import Manifest
from contract.errors import ContractError
from coordinator.client import Client, ClientError
from coordinator.errors import InvalidError, SetupError
from coordinator.files import write_private
from coordinator.records import SigningRequest
from coordinator.signing import ceremony as ceremonies
from coordinator.signing import keys, repository
from coordinator.signing.ceremony import Ceremony
from coordinator.signing.repository import BUNDLES, ONLINE_ROLES, PEOPLE, Holders, Target
from coordinator.signing.secrets import Ask, nobody

logger = logging.getLogger(__name__)

FILE = "signer.toml"
KEYS = "keys"
_RENEW_S = repository.OFFLINE_DAYS * 86400.0 / 2


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `signer.toml`, in the signer's folder.

    Attributes:
        policy: `automatic` signs every good bundle; `person` waits for `fieldfare keys approve`.
    """

    policy: Literal["automatic", "person"] = "automatic"

    @classmethod
    def load(cls, folder: Path) -> "Policy":
        """Read it; the defaults where there is no file.

        Raises:
            SetupError: not TOML, or a key that does not belong.
        """
        path = folder / FILE
        try:
            return msgspec.toml.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return cls()
        except (OSError, msgspec.DecodeError) as error:
            raise SetupError(f"{path}: {error}") from error


class Coordinator(Protocol):
    """What the signer needs of `coordinator.client.Client`."""

    def get(self, path: str, kind: type[Any], **query: object) -> Any:
        """GET and decode."""
        ...

    def signing_metadata(self, role: str) -> bytes | None:
        """The newest published metadata of a role."""
        ...

    def publish_metadata(self, files: Mapping[str, str]) -> dict[str, Any]:
        """Hand in metadata by file name."""
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
    """The key of `bundles` and the metadata that it signed, in one folder; both survive a kill at any moment."""

    def __init__(self, folder: Path, *, ask: Ask = nobody) -> None:
        """Use a signer's folder.

        Args:
            folder: with `keys` and, where it has signed before, `metadata/bundles.json`.
            ask: gives the passphrase or PIN of the key.
        """
        self._folder, self._ask = folder, ask
        self._path = folder / "metadata" / f"{BUNDLES}.json"
        self._key: Key | None = None

    def begin(self, coordinator: Coordinator, now: float) -> bool:
        """Take the key that the repository names, and what was signed with it; False while there is no repository.

        A laptop's repository is begun here, with one key a role; one in production is begun by a ceremony.

        Raises:
            SetupError: the coordinator's repository names another signer, or the key cannot be read.
        """
        answer = coordinator.get("/v1/signing/repository", dict[str, Any])
        if not answer["initialised"]:
            if answer["mode"] == "production":
                return False
            self._begin_alone(coordinator, answer["keys"], now)
        delegating = coordinator.signing_metadata("targets")
        if delegating is None:
            return False
        self._key = self.key_of(repository.holders(delegating, BUNDLES))
        self._adopt(coordinator.signing_metadata(BUNDLES))
        return True

    def _begin_alone(self, coordinator: Coordinator, online: Mapping[str, dict[str, object]], now: float) -> None:
        ceremony, mine = Ceremony(self._folder), self._folder / KEYS
        made = {role: keys.ensure(mine, role).public_key for role in (*PEOPLE, BUNDLES)}
        if not ceremony.begun:
            holders = {role: Holders([made[role]]) for role in PEOPLE}
            holders |= {role: Holders([keys.parse_public(online[role])]) for role in ONLINE_ROLES}
            for role, key in made.items():
                ceremony.introduce(role, key)
            ceremony.init(holders, Holders([made[BUNDLES]]), now)
        ceremony.sign(mine, lambda name: keys.load(mine, name))
        ceremonies.publish(ceremony, coordinator, self.key_of, now)
        logger.info("published the first root metadata")

    def key_of(self, holders: Holders) -> Key:
        """The key here that may sign for these.

        Raises:
            SetupError: none.
        """
        here = keys.names(self._folder / KEYS)
        for key in holders.keys:
            if key.keyid in here:
                return keys.load(self._folder / KEYS, here[key.keyid], self._ask)
        raise SetupError(f"{self._folder}: this coordinator trusts another signer; use that signer's folder")

    def _adopt(self, published: bytes | None) -> None:
        """Go on from the published metadata where it holds what is not here: another machine has the same key.

        What is here and newer was signed and not handed in; a coordinator that shows an older state changes nothing.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if published is None:
            return
        if self._path.exists():
            mine = self._path.read_bytes()
            behind = repository.version_and_expiry(published)[0] < repository.version_and_expiry(mine)[0]
            if behind and repository.paths(published) <= repository.paths(mine):
                return
        if not repository.signed_by(published, self._signer.public_key):
            raise SetupError("the coordinator shows metadata that this signer's key did not sign; do not trust it")
        write_private(self._path, published)

    @property
    def _signer(self) -> Key:
        if self._key is None:
            raise SetupError("the signer has not begun")
        return self._key

    def work(self, coordinator: Coordinator, now: float) -> int:
        """Answer every request that waits, and renew the metadata long before it expires; how many requests."""
        self._renew(coordinator, now)
        requests = coordinator.signing_requests()
        for request in requests:
            try:
                self.approve(coordinator, request, now)
            except (ContractError, InvalidError) as error:
                logger.warning("refused %s: %s", request.target, error)
                coordinator.refuse_signature(request.id, str(error))
        return len(requests)

    def approve(self, coordinator: Coordinator, request: SigningRequest, now: float) -> None:
        """Sign for one request and hand it in; errors as in `sign`."""
        metadata = self.sign(request, coordinator.signing_bundle(request.bundle_sha256), now)
        coordinator.submit_signature(request.id, metadata.decode())
        logger.info("signed %s", request.target)

    def _renew(self, coordinator: Coordinator, now: float) -> None:
        current = self._path.read_bytes()
        if repository.version_and_expiry(current)[1] - now > _RENEW_S:
            return
        after = repository.renew_bundles(current, self._signer, now)
        version, _ = repository.version_and_expiry(after)
        coordinator.publish_metadata({f"{version}.{BUNDLES}.json": after.decode()})
        write_private(self._path, after)
        logger.info("renewed the bundles metadata")

    def sign(self, request: SigningRequest, content: bytes, now: float) -> bytes:
        """Look at a bundle and sign for it. Signing again what is signed gives the same bytes.

        Returns: the `bundles` metadata, which is also in the folder.

        Raises:
            ContractError: not a bundle.
            InvalidError: another digest, size or name than the request says, or a name that is taken.
        """
        manifest = read_manifest(request, content)
        target = Target(request.size, request.bundle_sha256)
        current = self._path.read_bytes()
        if repository.target(current, request.target) not in (None, target):
            raise InvalidError(f"{request.target} was signed with another content")
        custom = msgspec.to_builtins(targets.custom(manifest, blocks=blocks.list_digest(content)))
        after = repository.add_target(current, request.target, target, custom=custom, signer=self._signer, now=now)
        if after != current:
            write_private(self._path, after)
        return after


def read_manifest(request: SigningRequest, content: bytes) -> Manifest:
    """The manifest of a bundle that is the one which a request names; errors as in `Signer.sign`."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != request.bundle_sha256 or len(content) != request.size:
        raise InvalidError("the bundle is not the one that was asked for: its digest or size differs")
    manifest = bundle.unpack(content).manifest
    name = bundle.target_path(manifest.model, manifest.version, manifest.variant, digest)
    if name != request.target:
        raise InvalidError(f"the bundle's manifest makes it {name}, not {request.target}")
    return manifest


def create(folder: Path) -> None:
    """Make a laptop's keys where they are missing: one a role, plain."""
    for role in (*PEOPLE, BUNDLES):
        keys.ensure(folder / KEYS, role)


def run(
    folder: Path,
    url: str,
    ca: Path,
    token: str,
    *,
    ask: Ask = nobody,
    poll_s: float = 0.5,
    stop: threading.Event | None = None,
) -> None:
    """Sign what waits, by the folder's policy, until `stop` is set; a coordinator that is away is waited for.

    Args:
        folder: of this signer.
        url: of the coordinator.
        ca: PEM file of the certificate authority that the coordinator's certificate comes from.
        token: of the signer, not of the operator.
        ask: gives the passphrase or PIN of the key.
        poll_s: seconds between two looks.
        stop: ends the loop.

    Raises:
        SetupError: keys that cannot be read, or a coordinator that trusts another signer.
    """
    stop = stop or threading.Event()
    signer, policy, begun, said = Signer(folder, ask=ask), Policy.load(folder).policy, False, ""
    with Client(url, ca, token, retry_s=0.0) as client:
        while not stop.is_set():
            told = ""
            try:
                begun = begun or signer.begin(client, time.time())
                if not begun:
                    told = "the coordinator has no root metadata yet; it comes from: fieldfare keys publish"
                elif policy == "automatic":
                    signer.work(client, time.time())
                elif waiting := client.signing_requests():
                    told = f"{len(waiting)} bundles wait for a person: fieldfare keys waiting"
            except ClientError as error:
                told = f"the coordinator did not answer as hoped: {error}"
                begun = False  # the repository may name another key by now
            if told and told != said:  # once, not twice a second
                logger.warning("%s", told)
            said = told
            stop.wait(poll_s)
