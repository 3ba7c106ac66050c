"""The agent's folder before and while an agent runs in it: who holds it, and what an earlier one left behind."""

import fcntl
import os
import pwd
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from edge_agent.errors import ConfigError


def locked(lock: IO[str], *, tries: int = 10) -> bool:
    """Take the lock; `edge-agent status` holds it for a moment when it looks."""
    for _ in range(tries):
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(0.05)
    return False


def check_owner(root: Path) -> None:
    """Keep root from leaving files in a folder of another user, whose agent could not read them.

    Raises:
        ConfigError: this is root, and the folder is somebody else's.
    """
    owner = root.stat().st_uid if root.exists() else 0
    if os.geteuid() == 0 and owner:
        user = f"'#{owner}'"
        with suppress(KeyError):
            user = pwd.getpwuid(owner).pw_name
        raise ConfigError(
            f"{root} belongs to {user}, and what root writes there its agent cannot read: sudo -u {user} …"
        )


def sweep(staging: Path, *, older_than: float) -> None:
    """Remove what a kill left behind: unfinished jobs, and pulls that nobody resumed for long."""
    for path in staging.glob("*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.stat().st_mtime < older_than:
            path.unlink()


def read_root(path: Path) -> bytes:
    """The root of trust from enrolment.

    Raises:
        ConfigError: it is missing.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: no root of trust; enrol this device again") from error
