"""Room for a new bundle: within `updates.disk_bytes`, and on the disk. What is least missed goes first.

First pulls that nobody goes on with; then the bundles that would only serve after a rollback, of the model that gets
the new one, then of the others from the least important on. Never what serves, and never the fallback of a bundle that
is on probation.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from edge_agent.config import Config, Folder
from edge_agent.errors import RefusedError
from edge_agent.state import State
from edge_agent.switch import Switch

_LOG = logging.getLogger(__name__)
_ABANDONED_S = 600.0  # a part file that did not grow for so long
_SPARE_BYTES = 4 * 1024 * 1024  # of the disk, for the agent's memory and whoever else writes there


class Disk:
    """The folders `slots`, `staging` and `samples`."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        *,
        state: State,
        switch: Switch,
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            config, folder, state, switch: of the agent.
            free: bytes that a path's disk still takes.
            clock: seconds since the epoch, as the disk dates files.
        """
        self._config, self._folder, self._state, self._switch = config, folder, state, switch
        self._free, self._clock = free, clock

    def make_room(self, model: str, sha256: str, size: int) -> None:
        """See that an artifact can be staged.

        Args:
            model: whose bundle it is.
            sha256: of the artifact; what is there of it already is not in the way.
            size: in bytes.

        Raises:
            RefusedError: it does not fit, though all went that may go.
        """
        for remove in self._removals(model, sha256):
            if self._lacking(sha256, size) is None:
                return
            remove()
        self.check_room(sha256, size)

    def check_room(self, sha256: str, size: int) -> None:
        """The same, where nothing may go for it."""
        reason = self._lacking(sha256, size)
        if reason is not None:
            raise RefusedError(reason)

    def used(self) -> int:
        """Bytes in slots, staging and samples."""
        folders = (self._folder.slots, self._folder.staging, self._folder.samples)
        return sum(_size(path) for folder in folders for path in folder.rglob("*"))

    def _lacking(self, sha256: str, size: int) -> str | None:
        begun = sum(_size(path) for path in self._folder.staging.glob(f"{sha256}.*"))
        needed, used, limit = max(0, size - begun), self.used(), self._config.updates.disk_bytes
        if used + needed > limit:
            return (
                f"no room for {size} bytes: slots, staging and samples take {used}, updates.disk_bytes is {limit}; "
                "raise it, or take a model off this device"
            )
        free = self._free(self._folder.root)
        if free < needed + _SPARE_BYTES:
            return f"no room for {size} bytes: the disk has {free} free, and {_SPARE_BYTES} must stay so"
        return None

    def _removals(self, model: str, sha256: str) -> Iterator[Callable[[], None]]:
        """What may go, the least missed first."""
        for path in sorted(self._folder.staging.glob("*.part")):
            if not path.name.startswith(sha256) and self._clock() - _modified(path) > _ABANDONED_S:
                yield partial(self._remove, path)
        important = self._config.runtime.priority
        others = sorted(self._state.models.all(), key=lambda name: (name != model, important.get(name, 0), name))
        for name in others:
            yield partial(self._switch.give_up_previous, name)

    def _remove(self, path: Path) -> None:
        _LOG.info("removed %s to make room", path)
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # it went just now
        return 0


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
