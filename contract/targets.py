"""What signed metadata says of a bundle beside its size and hash (TUF's `custom`), and whether a device meets it.

Both sides need it: the signer writes it from the manifest, the device reads it before it downloads anything.
"""

from typing import TYPE_CHECKING

import msgspec

from contract.errors import BundleError

if TYPE_CHECKING:  # the process that checks signatures needs no numpy
    from contract.bundle import Manifest

CREATED = "x-fieldfare-created"  # field of all our TUF metadata: when it was made, seconds since the epoch


class Custom(msgspec.Struct, frozen=True, kw_only=True):
    """The `custom` part of a bundle's target.

    Attributes:
        model, version, variant: as in the manifest.
        hardware_classes: that may run it; empty means any.
        min_agent_version: numbers with dots; empty means any.
        min_runtime_version: as in the Manifest.
        blocks: SHA-256 of the bundle's block list; None where nobody made one.
    """

    model: str
    version: int
    variant: str
    hardware_classes: list[str] = []
    min_agent_version: str = ""
    min_runtime_version: str = ""
    blocks: str | None = None


def custom(manifest: "Manifest", *, blocks: str | None = None) -> Custom:
    """What a signer states of a bundle."""
    return Custom(
        model=manifest.model,
        version=manifest.version,
        variant=manifest.variant,
        hardware_classes=manifest.hardware_classes,
        min_agent_version=manifest.min_agent_version,
        min_runtime_version=manifest.min_runtime_version,
        blocks=blocks,
    )


def unmet(
    hardware_classes: list[str],
    min_agent_version: str,
    min_runtime_version: str,
    *,
    hardware_class: str,
    agent_version: str,
    runtime_version: str,
) -> str | None:
    """Why a device must not run a bundle; None where it may.

    Args:
        hardware_classes, min_agent_version, min_runtime_version: that the bundle needs.
        hardware_class, agent_version: of the device.
        runtime_version: name and version, for example `ai-edge-litert 2.3.0`.
    """
    if hardware_classes and hardware_class not in hardware_classes:
        return f"the bundle is for {', '.join(hardware_classes)}; this is {hardware_class}"
    try:
        if min_agent_version and numbers(min_agent_version) > numbers(agent_version):
            return f"the bundle needs agent {min_agent_version}, this is {agent_version}"
        if min_runtime_version and not _runs(min_runtime_version, runtime_version):
            return f"the bundle needs runtime {min_runtime_version}, this device has {runtime_version or 'none'}"
    except BundleError as error:
        return str(error)
    return None


def check_versions(min_agent_version: str, min_runtime_version: str) -> None:
    """Whether devices will understand these.

    Raises:
        BundleError: not numbers with dots, where numbers are.
    """
    if min_agent_version:
        numbers(min_agent_version)
    if min_runtime_version:
        _runs(min_runtime_version, "any 0")


def numbers(version: str) -> tuple[int, ...]:
    """`2.10.0` as numbers that can be compared.

    Raises:
        BundleError: anything else.
    """
    try:
        found = tuple(int(part) for part in version.split("."))
    except ValueError as error:
        raise BundleError(f"version {version[:40]!r} is not numbers with dots") from error
    while found and found[-1] == 0:  # 2.3 is 2.3.0
        found = found[:-1]
    return found


def _runs(needed: str, runtime: str) -> bool:
    """Whether one of the alternatives in `needed` is met."""
    name, _, version = runtime.rpartition(" ")
    for alternative in needed.split(","):
        wanted, _, least = alternative.strip().rpartition(" ")
        enough = numbers(least) <= numbers(version or "0")  # compared first, so that every alternative is read
        if enough and wanted in {"", name}:
            return True
    return False
