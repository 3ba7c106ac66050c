"""Two slots for bundles: one serves, the other is free to be written. Which one serves is in `state`."""

import hashlib
from pathlib import Path

from contract import bundle as bundles
from contract.bundle import Bundle
from contract.errors import ContractError
from edge_agent.errors import RefusedError
from edge_agent.files import write_atomically

NAMES = ("a", "b")


class Slots:
    """The folder `slots`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, slot: str) -> Path:
        """Where a slot keeps its bundle."""
        return self._root / slot / "bundle.zip"

    def stage(self, slot: str, data: bytes) -> None:
        """Write a verified bundle into a slot that does not serve; whole or not at all."""
        write_atomically(self.path(slot), data)

    def load(self, slot: str, sha256: str) -> Bundle:
        """Read a slot's bundle, and check that the disk kept it.

        Raises:
            RefusedError: missing, or other bytes than were verified, or no bundle.
        """
        try:
            data = self.path(slot).read_bytes()
        except OSError as error:
            raise RefusedError(f"slot {slot} cannot be read: {error.strerror}") from error
        return parse(data, sha256)


def idle(active: str | None) -> str:
    """The slot that may be written while `active` serves."""
    return NAMES[1] if active == NAMES[0] else NAMES[0]


def parse(data: bytes, sha256: str) -> Bundle:
    """A bundle from bytes whose digest is checked first.

    Raises:
        RefusedError: another digest, or not a bundle.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise RefusedError(f"the bundle's SHA-256 is {digest[:12]}..., the signed one is {sha256[:12]}...")
    try:
        return bundles.unpack(data)
    except ContractError as error:
        raise RefusedError(f"the bundle cannot be used: {error}") from error
