"""Two slots for each model: one serves, the other holds what served before or is free to be written.

Which one serves is in `state`. Beside its bundle a slot keeps a record of what it is, so that a device whose state was
lost finds its models again.
"""

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from contract import bundle as bundles
from contract import codec
from contract.bundle import Bundle
from contract.errors import BundleError, ContractError
from edge_agent.errors import RefusedError
from edge_agent.files import make_folder, move, remove, write_atomically
from edge_agent.placement import Placement, Slot

NAMES = ("a", "b")
_BUNDLE, _RECORD = "bundle.zip", "record.json"

_LOG = logging.getLogger(__name__)


class Slots:
    """The folder `slots`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, slot: Slot) -> Path:
        """Where a slot keeps its bundle."""
        return self._folder(slot) / _BUNDLE

    def _folder(self, slot: Slot) -> Path:
        return self._root / slot.bundle.model / slot.name

    def stage(self, slot: Slot, file: Path) -> None:
        """Move a verified bundle into a slot that does not serve; whole or not at all."""
        make_folder(self._folder(slot))
        move(file, self.path(slot))
        write_atomically(self._folder(slot) / _RECORD, codec.encode_json(slot))

    def load(self, slot: Slot) -> Bundle:
        """Read a slot's bundle, and check that the disk kept it.

        Raises:
            RefusedError: missing, or other bytes than were verified, or no bundle.
        """
        try:
            data = self.path(slot).read_bytes()
        except OSError as error:
            raise RefusedError(f"slot {slot.name} of {slot.bundle.model} cannot be read: {error.strerror}") from error
        return parse(data, slot.bundle.sha256)

    def drop(self, slot: Slot) -> None:
        """Empty a slot that nothing points to any more; the record goes first."""
        remove(self._folder(slot) / _RECORD)
        remove(self.path(slot))

    def sweep(self, placements: Mapping[str, Placement]) -> None:
        """Remove what no placement points to: slots that a kill left behind, models that were taken off the device.

        Records of what stays are written again where the disk broke them.
        """
        slots = [slot for p in placements.values() for slot in (p.active, p.previous) if slot is not None]
        kept = {self._folder(slot) for slot in slots}
        for slot in slots:
            self._mend_record(slot)
        for folder in self._root.glob("*/*"):
            for path in folder.iterdir() if folder in kept else [folder]:
                if path.name not in {_BUNDLE, _RECORD}:
                    _remove(path)
        for model in self._root.glob("*"):
            if not any(folder.parent == model for folder in kept):
                _remove(model)

    def _mend_record(self, slot: Slot) -> None:
        path, record = self._folder(slot) / _RECORD, codec.encode_json(slot)
        try:
            if path.is_file() and path.read_bytes() == record:
                return
            if path.parent.is_dir():
                write_atomically(path, record)
        except OSError as error:
            _LOG.warning("%s cannot be written: %s", path, error)

    def recover(self) -> dict[str, Placement]:
        """What lies on the disk, whole and as recorded, for a device that lost its state; the newest serves."""
        found: dict[str, Placement] = {}
        for model in sorted(self._root.glob("*")):
            slots = [slot for name in NAMES if (slot := self._recorded(model / name)) is not None]
            slots.sort(key=lambda slot: slot.activated_at, reverse=True)
            if slots:
                found[model.name] = Placement(active=slots[0], previous=slots[1] if len(slots) > 1 else None)
        return found

    def _recorded(self, folder: Path) -> Slot | None:
        try:
            slot = codec.decode_json((folder / _RECORD).read_bytes(), Slot)
            bundles.check_model(slot.bundle.model)
            if self._folder(slot) != folder:
                raise BundleError(f"the record is of slot {slot.name[:8]} of {slot.bundle.model}")
            check_name(slot, self.load(slot))
        except FileNotFoundError:
            return None
        except (OSError, ContractError, RefusedError) as error:
            _LOG.warning("%s is not taken up again: %s", folder, error)
            return None
        return slot


def check_name(slot: Slot, bundle: Bundle) -> None:
    """Whether a bundle is what a slot says of it.

    Raises:
        RefusedError: it is another model, version or variant.
    """
    manifest, ref = bundle.manifest, slot.bundle
    if (manifest.model, manifest.version, manifest.variant) != (ref.model, ref.version, ref.variant):
        raise RefusedError(
            f"the bundle is {manifest.model}:{manifest.version} {manifest.variant}, "
            f"wanted is {ref.model}:{ref.version} {ref.variant}"
        )


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


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            remove(path)
    except OSError as error:
        _LOG.warning("%s cannot be removed: %s", path, error)
