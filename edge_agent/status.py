"""What an agent's folder says of the agent, running or not."""

import fcntl
from pathlib import Path

import msgspec

from contract.messages import BundleRef, Dropped
from edge_agent import certificate
from edge_agent.config import Folder, load
from edge_agent.errors import ConfigError
from edge_agent.state import State


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A model on this device.

    Attributes:
        bundle: that serves.
        slot: where it lies.
        previous: what would serve after a rollback.
        on_probation: it is not known to be good yet.
    """

    bundle: BundleRef
    slot: str
    previous: BundleRef | None
    on_probation: bool


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an agent.

    Attributes:
        running: its process lives.
        connected: it has a session with the broker.
        models: what serves, by name.
        inferences: since enrolment.
        pending_reports: not yet confirmed by the coordinator.
        dropped: what left the outbox unsent, because it was too much, too old or unreadable.
        certificate_ends: when the certificate expires, in seconds since the epoch; None where it cannot be read.
        held: why an update waits by the owner's rules; empty where none does.
        last_refusal: the newest bundle that was refused, and why; empty where there is none.
    """

    device: str
    running: bool
    connected: bool
    models: dict[str, Served]
    inferences: int
    pending_reports: int
    dropped: Dropped
    last_refusal: str
    held: str = ""
    certificate_ends: float | None = None


def read(root: Path) -> Status:
    """Read the status of a folder.

    Raises:
        ConfigError: no agent there.
    """
    folder = Folder(root)
    device = load(folder).device
    running = is_running(folder.lock)
    if not folder.state.exists():
        return Status(
            device=device,
            running=running,
            connected=False,
            models={},
            inferences=0,
            pending_reports=0,
            dropped=Dropped(),
            last_refusal="",
            certificate_ends=_certificate_ends(folder),
        )
    state = State(folder.state, outbox_id="")
    try:
        refusal = state.last_event("refused")
        return Status(
            device=device,
            running=running,
            connected=running and state.get("connected", bool, False),
            models=serves(state),
            inferences=state.get("inferences", int, 0),
            pending_reports=state.pending_count(),
            dropped=state.dropped,
            last_refusal=refusal.text if refusal else "",
            held=state.get("held", str, ""),
            certificate_ends=_certificate_ends(folder),
        )
    finally:
        state.close()


def serves(state: State) -> dict[str, Served]:
    """What an agent's memory says of its models."""
    return {
        model: Served(
            bundle=placement.active.bundle,
            slot=placement.active.name,
            previous=placement.previous.bundle if placement.previous else None,
            on_probation=placement.probation is not None,
        )
        for model, placement in state.models.all().items()
        if placement.active is not None
    }


def _certificate_ends(folder: Folder) -> float | None:
    try:
        return certificate.show(folder).ends
    except ConfigError:
        return None


def is_running(lock: Path) -> bool:
    """Whether an agent holds this lock."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
