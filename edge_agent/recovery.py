"""The agent's memory, or a new one where the disk damaged it: an agent that starts serves."""

import logging
import os
import shutil
from pathlib import Path

from edge_agent.config import Outbox
from edge_agent.errors import ConfigError, CorruptStateError
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_SUFFIX = ".damaged"


def open_state(path: Path, *, outbox_id: str, bounds: Outbox) -> State:
    """Open the agent's memory; one that is damaged is put aside, and a new one begun.

    What was lost then: reports that were not sent, open windows, which sample files were counted. The models are found
    again by their slots' records (`Switch.restore`), and the desired state comes from the broker.

    Args:
        path: of the SQLite file.
        outbox_id: name of the outbox if it must be created now.
        bounds: of the outbox.

    Raises:
        ConfigError: a new one cannot be made either.
    """
    try:
        return State(path, outbox_id=outbox_id, bounds=bounds)
    except CorruptStateError as error:
        _LOG.error("%s; it is put aside as %s, and a new one begun", error, path.name + _SUFFIX)
    try:
        for name in (f"{path.name}-wal", f"{path.name}-shm", path.name + _SUFFIX):
            _remove(path.with_name(name))
        os.replace(path, path.with_name(path.name + _SUFFIX))  # noqa: PTH105 - may be a folder
    except OSError as error:
        raise ConfigError(f"{path}: damaged, and it cannot be put aside: {error}") from error
    state = State(path, outbox_id=outbox_id, bounds=bounds)
    state.alert("damaged", f"{path.name} was damaged; a new one was begun", at=0.0)
    return state


def _remove(path: Path) -> None:
    """Whatever the disk made of it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
