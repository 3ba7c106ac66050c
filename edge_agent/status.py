"""What an agent's folder says of the agent, running or not."""

import fcntl
from pathlib import Path

import msgspec

from contract.messages import BundleRef
from edge_agent.config import Folder, load
from edge_agent.state import State


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The state of an agent.

    Attributes:
        running: its process lives.
        connected: it has a session with the broker.
        active: the bundle that serves.
        slot: where it lies.
        inferences: since enrolment.
        pending_reports: not yet confirmed by the coordinator.
        last_refusal: the newest bundle that was refused, and why; empty where there is none.
    """

    device: str
    running: bool
    connected: bool
    active: BundleRef | None
    slot: str | None
    inferences: int
    pending_reports: int
    last_refusal: str


def read(root: Path) -> Status:
    """Read the status of a folder.

    Raises:
        ConfigError: no agent there.
    """
    folder = Folder(root)
    device = load(folder).device
    running = _running(folder.lock)
    if not folder.state.exists():
        return Status(
            device=device,
            running=running,
            connected=False,
            active=None,
            slot=None,
            inferences=0,
            pending_reports=0,
            last_refusal="",
        )
    state = State(folder.state, outbox_id="")
    try:
        active, refusal = state.active, state.last_event("refused")
        return Status(
            device=device,
            running=running,
            connected=running and state.get("connected", bool, False),
            active=active.bundle if active else None,
            slot=active.name if active else None,
            inferences=state.get("inferences", int, 0),
            pending_reports=state.pending_count(),
            last_refusal=refusal.text if refusal else "",
        )
    finally:
        state.close()


def _running(lock: Path) -> bool:
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
