"""Which certificates devices hold: each has a row until it has expired, so that all of a device's can be revoked."""

from collections.abc import Mapping
from datetime import UTC, datetime

from sqlalchemy import Connection, delete, select, update

from coordinator import pki
from coordinator.fleet.tables import certificates


def note(connection: Connection, device: str, certificate_pem: bytes, now: float) -> None:
    """Remember a certificate that was issued; forget those that have expired."""
    connection.execute(delete(certificates).where(certificates.c.device == device, certificates.c.expires_at < now))
    row = {"serial": f"{pki.serial(certificate_pem):x}", "device": device, "issued_at": now}
    connection.execute(certificates.insert().values(**row, expires_at=pki.validity(certificate_pem)[1]))


def revoke(connection: Connection, device: str, now: float) -> None:
    """Revoke every certificate that a device has been given."""
    mine = (certificates.c.device == device) & certificates.c.revoked_at.is_(None)
    connection.execute(update(certificates).where(mine).values(revoked_at=now))


def revoked(connection: Connection, now: float) -> Mapping[int, datetime]:
    """Since when, by serial number; what has expired need not be listed."""
    query = select(certificates.c.serial, certificates.c.revoked_at)
    listed = query.where(certificates.c.revoked_at.is_not(None), certificates.c.expires_at >= now)
    return {int(row.serial, 16): datetime.fromtimestamp(row.revoked_at, UTC) for row in connection.execute(listed)}
