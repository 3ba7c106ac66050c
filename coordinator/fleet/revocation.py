"""Revocation reaches the broker: the list of revoked certificates is written, read again, and live sessions are cut.

In this order, so that a device that is cut off cannot come back. A step that fails is tried again, from the start.
"""

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import select, update

from coordinator.config import Config
from coordinator.fleet import certificates
from coordinator.fleet.tables import devices
from coordinator.pki import Authority
from coordinator.storage import Storage

logger = logging.getLogger(__name__)

FRESH_S = 86400.0  # the list is made anew so often, long before it expires
BATCH = 200  # devices in one message to the broker, which takes no larger ones than any other
RETRY_S = 5.0  # after a list that could not be given to the broker
PAUSE_S = 1.0  # between two times that the broker is told of the same devices


class Revocation:
    """Call `tick` often."""

    def __init__(
        self,
        storage: Storage,
        config: Config,
        authority: Authority,
        *,
        publish: Callable[[bytes], None],
        kick: Callable[[Sequence[str]], bool],
    ) -> None:
        """Nothing is written yet.

        Args:
            storage: knows who is revoked.
            config: how long a list lasts.
            authority: signs the list.
            publish: give the list (PEM) to the broker, which reads it before this returns or soon after.
            kick: cut the sessions of devices; False where the broker cannot be told now.
        """
        self._engine = storage.engine
        self._config = config
        self._authority = authority
        self._publish = publish
        self._kick = kick
        self._listed: frozenset[int] | None = None  # None: this process has written no list yet
        self._written_at = self._tried_at = self._kicked_at = 0.0

    def tick(self, now: float) -> None:
        """Write the list where it has changed or grown old, and have the broker cut off who was revoked."""
        with self._engine.begin() as connection:
            revoked = certificates.revoked(connection, now)
            waiting = list(connection.execute(select(devices.c.name).where(devices.c.kicks_left > 0)).scalars())
        due = bool(waiting) and _passed(PAUSE_S, self._kicked_at, now)
        lasts = timedelta(days=self._config.crl_days)
        old = _passed(min(FRESH_S, lasts.total_seconds() / 3), self._written_at, now)
        if not (due or old or frozenset(revoked) != self._listed) or not _passed(RETRY_S, self._tried_at, now):
            return
        self._tried_at = now
        self._publish(self._authority.crl(revoked, lasts=lasts, now=datetime.fromtimestamp(now, UTC)))
        self._listed, self._written_at, self._tried_at = frozenset(revoked), now, 0.0
        if due:
            self._kicked_at = now
            for first in range(0, len(waiting), BATCH):
                self._cut_off(waiting[first : first + BATCH])

    def _cut_off(self, names: Sequence[str]) -> None:
        if not self._kick(names):
            return
        with self._engine.begin() as connection:
            told = devices.c.name.in_(names) & (devices.c.kicks_left > 0)
            connection.execute(update(devices).where(told).values(kicks_left=devices.c.kicks_left - 1))
        logger.info("the broker was told to cut off %s", ", ".join(names))


def _passed(seconds: float, since: float, now: float) -> bool:
    """Whether so much time has passed; a clock that was set back does not make anything wait."""
    return not since <= now < since + seconds
