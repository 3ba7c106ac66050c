"""Alerts as rows."""

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Connection, RowMapping, and_, insert, not_, or_, select, update

from coordinator.monitoring.tables import alerts as table
from coordinator.records import Alert
from coordinator.rounds.tables import runs
from coordinator.sql import to_record


def every(connection: Connection, *, limit: int = 500) -> list[Alert]:
    """The newest alerts first."""
    query = select(table).order_by(table.c.created_at.desc(), table.c.id).limit(limit)
    return [_alert(row) for row in connection.execute(query).mappings()]


def unanswered(connection: Connection) -> list[Alert]:
    """Open alerts, the oldest first."""
    query = select(table).where(table.c.state == "open").order_by(table.c.created_at, table.c.id)
    return [_alert(row) for row in connection.execute(query).mappings()]


def covers(connection: Connection, bundle_sha256: str, devices: Collection[str], *, since: float) -> bool:
    """Whether an alert on this bundle names all these devices, and its run did not come to nothing before `since`."""
    query = select(table.c.cohort).join_from(table, runs, runs.c.id == table.c.run, isouter=True)
    in_vain = and_(runs.c.state.in_(("failed", "cancelled")), runs.c.finished_at <= since)
    query = query.where(table.c.bundle_sha256 == bundle_sha256, or_(runs.c.id.is_(None), not_(in_vain)))
    return any(set(devices) <= set(cohort) for cohort in connection.execute(query).scalars())


def create(connection: Connection, alert: Alert) -> None:
    """Insert an alert."""
    values: dict[str, Any] = msgspec.structs.asdict(alert)
    connection.execute(insert(table).values(**values))


def answer(connection: Connection, alert: str, run: str) -> None:
    """Note which run answers an alert."""
    connection.execute(update(table).where(table.c.id == alert).values(state="answered", run=run))


def _alert(row: RowMapping) -> Alert:
    return to_record(row, Alert)
