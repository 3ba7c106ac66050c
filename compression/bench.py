"""Ask an enrolled device to measure a bundle. The registry keeps the answer, and gates of its hardware class use it."""

from collections.abc import Callable, Mapping

from compression.errors import BenchError
from coordinator.client import Bundle, Client, Gates, Measurement

_SHORTEST = 6  # characters of a digest that name a bundle


def bench(
    client: Client,
    bundle: str,
    device: str,
    *,
    timeout_s: float = 600.0,
    on_progress: Callable[[str], None] = lambda _phrase: None,
) -> Measurement:
    """Have a bundle measured on a device.

    Args:
        client: of the coordinator.
        bundle: the beginning of its SHA-256, or MODEL:VERSION for the newest bundle of a version.
        device: enrolled; its owner must allow it (`remote.bench` in `agent.toml`).
        timeout_s: how long the device may take to answer; it may be asleep, or pull the bundle first.
        on_progress: hears what is waited for, as a phrase for a person.

    Raises:
        BenchError: no such bundle, or the device refused; the message says why.
        ClientError: the coordinator refuses (a bundle that is not signed, no such device), or no answer in time.
    """
    found = named(client.bundles(), bundle)
    command = client.bench(device, found.sha256)
    on_progress(f"{device} measures {found.model}:{found.version} {found.variant} {found.sha256[:12]}")
    answered = client.wait_command(command, timeout_s=timeout_s)
    if answered.error:
        raise BenchError(f"{device} did not measure {found.sha256[:12]}: {answered.error}")
    variants = client.get_version(found.model, found.version).variants
    artifact = next(each.tflite_sha256 for each in variants if each.name == found.variant)
    for made in client.measurements(artifact):
        if made.id == command.id:
            return made
    raise BenchError(f"the coordinator keeps no measurement of {command.id}")


def named(bundles: list[Bundle], bundle: str) -> Bundle:
    """The bundle that a person means; `bundles` are newest first.

    Raises:
        BenchError: none, or several.
    """
    model, colon, version = bundle.partition(":")
    if colon:
        found = [each for each in bundles if (each.model, str(each.version)) == (model, version)][:1]
    else:
        found = [each for each in bundles if each.sha256.startswith(bundle) and len(bundle) >= _SHORTEST]
    if len(found) != 1:
        raise BenchError(f"{len(found) or 'no'} bundles are {bundle!r}; see: fieldfare models bundles")
    return found[0]


def newest(measurements: list[Measurement]) -> dict[str, float]:
    """Hardware class to p95 latency in microseconds, by the newest measurement there; newest first comes in."""
    return {each.hardware_class: each.measured.p95_us for each in reversed(measurements)}


def missing(gates: Gates, measured: Mapping[str, float], local: str) -> list[str]:
    """What gates ask of hardware classes on which nobody measured, and what to run.

    Args:
        gates: of the model.
        measured: as `newest` gives it.
        local: the name that stands for the machine that compressed.
    """
    return [
        f"nobody measured it on hardware class {name}; run: fieldfare compress bench BUNDLE --on DEVICE"
        for name in sorted(gates.p95_us)
        if name not in measured and name != local
    ]
