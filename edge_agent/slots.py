"""Two slots for each model: one serves, the other is free to be written. Which one serves is in `state`."""

import hashlib
import shutil
from pathlib import Path

from contract import bundle as bundles
from contract.bundle import Bundle
from contract.errors import ContractError
from edge_agent.errors import RefusedError
from edge_agent.files import write_atomically
from edge_agent.state import Slot

NAMES = ("a", "b")


class Slots:
    """The folder `slots`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, model: str, slot: str) -> Path:
        """Where a slot keeps its bundle."""
        return self._root / model / slot / "bundle.zip"

    def stage(self, model: str, slot: str, data: bytes) -> None:
        """Write a verified bundle into a slot that does not serve; whole or not at all."""
        write_atomically(self.path(model, slot), data)

    def remove(self, model: str) -> None:
        """Take a model's slots off the disk."""
        shutil.rmtree(self._root / model, ignore_errors=True)

    def load(self, model: str, slot: str, sha256: str) -> Bundle:
        """Read a slot's bundle, and check that the disk kept it.

        Raises:
            RefusedError: missing, or other bytes than were verified, or no bundle.
        """
        try:
            data = self.path(model, slot).read_bytes()
        except OSError as error:
            raise RefusedError(f"slot {slot} of {model} cannot be read: {error.strerror}") from error
        return parse(data, sha256)


def idle(active: Slot | None) -> str:
    """The slot that may be written while `active` serves."""
    return NAMES[1] if active is not None and active.name == NAMES[0] else NAMES[0]


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
