"""Alerts as rows."""

from collections.abc import Collection
from typing import Any

import msgspec
from sqlalchemy import Connection, insert, select, update

from coordinator.monitoring.tables import alerts as table
from coordinator.records import Alert


def every(connection: Connection, *, limit: int = 500) -> list[Alert]:
    """The newest alerts first."""
    query = select(table).order_by(table.c.created_at.desc(), table.c.id).limit(limit)
    return [Alert(**{str(name): value for name, value in row.items()}) for row in connection.execute(query).mappings()]


def covers(connection: Connection, bundle_sha256: str, devices: Collection[str]) -> bool:
    """Whether an alert on this bundle names all these devices already."""
    query = select(table.c.cohort).where(table.c.bundle_sha256 == bundle_sha256)
    return any(set(devices) <= set(cohort) for cohort in connection.execute(query).scalars())


def create(connection: Connection, alert: Alert) -> None:
    """Insert an alert."""
    values: dict[str, Any] = msgspec.structs.asdict(alert)
    connection.execute(insert(table).values(**values))


def answer(connection: Connection, alert: str, run: str) -> None:
    """Note which run answers an alert."""
    connection.execute(update(table).where(table.c.id == alert).values(state="answered", run=run))
