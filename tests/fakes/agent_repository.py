"""A TUF repository in memory, made with the coordinator's and the signer's own code; a thief may hold its keys.

In the manner of python-tuf's own RepositorySimulator: what a test changes, it publishes, and a device fetches.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from securesystemslib.signer import CryptoSigner

from coordinator.signing import repository
from coordinator.signing.repository import BUNDLES, ONLINE_ROLES, Holders, Target

DAY = 86400.0


class Repository:
    """Signed metadata by file name. Root needs both of two keys, and so does targets.

    Attributes:
        files: what a client may fetch, by name.
        now: the coordinator's clock; seconds since the epoch.
        keys: those who sign, by role.
    """

    def __init__(self, now: float | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.now = time.time() if now is None else now
        counts = {"root": 2, "targets": 2, BUNDLES: 1, "snapshot": 1, "timestamp": 1}
        self.keys = {role: [CryptoSigner.generate_ed25519() for _ in range(count)] for role, count in counts.items()}
        self.versions = {"snapshot": 0, "timestamp": 0}
        root = repository.first_root({role: self.holders(role) for role in counts if role != BUNDLES}, self.now)
        self.put("root", self.signed(root, self.keys["root"]))
        targets = repository.first_targets(self.holders(BUNDLES), self.now)
        self.put("targets", self.signed(targets, self.keys["targets"]))
        self.put(BUNDLES, repository.first_bundles(self.keys[BUNDLES][0], self.now))
        self.bootstrap = self.newest("root")
        self.publish()

    def holders(self, role: str) -> Holders:
        """All keys of a role, all of which must sign."""
        return Holders([signer.public_key for signer in self.keys[role]], len(self.keys[role]))

    def signed(self, content: bytes, signers: Sequence[CryptoSigner]) -> bytes:
        """With their signatures."""
        for signer in signers:
            content = repository.sign(content, signer)
        return content

    def put(self, role: str, content: bytes) -> None:
        """Make a version available under its name."""
        self.files[f"{repository.version_and_expiry(content)[0]}.{role}.json"] = content

    def newest(self, role: str) -> bytes:
        """The newest version of a role."""
        return self.files[f"{max(self._numbers(role))}.{role}.json"]

    def _numbers(self, role: str) -> Iterator[int]:
        return (int(name.split(".")[0]) for name in self.files if name.endswith(f".{role}.json"))

    def add(self, path: str, data: bytes, *, signer: CryptoSigner | None = None, **custom: Any) -> None:
        """Sign a bundle and publish; `custom` as in `contract.targets.Custom`, `signer` may be a thief's."""
        _, model, version, _ = path.split("/")
        stated = {"model": model, "version": int(version), "variant": "float", **custom}
        target = Target(len(data), hashlib.sha256(data).hexdigest())
        after = repository.add_target(
            self.newest(BUNDLES), path, target, custom=stated, signer=signer or self.keys[BUNDLES][0], now=self.now
        )
        self.put(BUNDLES, after)
        self.publish()

    def publish(self) -> None:
        """Sign snapshot and timestamp over the newest of the others, as a coordinator does (or who stole its keys)."""
        self.versions = {role: version + 1 for role, version in self.versions.items()}
        snapshot = repository.snapshot(
            self.versions["snapshot"],
            self.newest(BUNDLES),
            self.newest("targets"),
            signer=self.keys["snapshot"][0],
            now=self.now,
        )
        self.put("snapshot", snapshot)
        self.files["timestamp.json"] = repository.timestamp(
            self.versions["timestamp"], self.versions["snapshot"], signer=self.keys["timestamp"][0], now=self.now
        )

    def rotate(self, *roles: str, signers: Sequence[CryptoSigner] | None = None) -> None:
        """Publish the next root with new keys for some of its roles; `signers` instead of the old and new holders."""
        old = list(self.keys["root"])
        self.keys |= {role: [CryptoSigner.generate_ed25519() for _ in self.keys[role]] for role in roles}
        version = repository.version_and_expiry(self.newest("root"))[0] + 1
        changed = {role: self.holders(role) for role in roles}
        root = repository.next_root(self.newest("root"), changed, self.now, version=version)
        self.put("root", self.signed(root, [*old, *self.keys["root"]] if signers is None else signers))
        if not set(roles).isdisjoint(ONLINE_ROLES):
            self.publish()
