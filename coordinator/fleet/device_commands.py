"""What an operator asks of single devices now: more of their log for a while, a diagnostics archive."""

import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, RowMapping, func, insert, select, update

from contract import limits
from contract.messages import Command, CommandReply
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet.tables import device_commands, devices
from coordinator.records import DeviceCommand
from coordinator.storage import Storage

_EXPIRES_S = 3600.0
_LONGEST_S = 7 * 86400.0
_OPEN = 16  # commands of one device that nobody answered yet


class Commands:
    """Commands over Storage. A command is sent until it is answered or expires; the device does it once."""

    def __init__(self, storage: Storage, *, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._blobs, self._clock = storage.engine, storage.blobs, clock

    def set_log_level(self, device: str, level: str, seconds: float) -> DeviceCommand:
        """Ask a device to log from this level on for so long; afterwards it goes back by itself.

        Raises:
            NotFoundError: no such device, or it is not enrolled.
            InvalidError: no such level, or no time between 0 and a week.
            ConflictError: too many commands wait for it.
        """
        if level not in {"debug", "info", "warning", "error"}:
            raise InvalidError(f"log level {level[:20]!r}: use debug, info, warning or error")
        if not 0 < seconds <= _LONGEST_S:
            raise InvalidError(f"{seconds} s: use more than 0 and at most {_LONGEST_S:.0f}")
        return self._ask(device, "log-level", level=level, seconds=seconds)

    def diagnose(self, device: str) -> DeviceCommand:
        """Ask a device for a diagnostics archive.

        Raises:
            NotFoundError: no such device, or it is not enrolled.
            ConflictError: too many commands wait for it.
        """
        return self._ask(device, "diagnostics")

    def _ask(self, device: str, kind: str, *, level: str = "", seconds: float = 0.0) -> DeviceCommand:
        now, name = self._clock(), uuid4().hex
        values = {"id": name, "device": device, "kind": kind, "level": level, "seconds": seconds, "created_at": now}
        with self._engine.begin() as connection:
            enrolled = devices.c.certificate_pem.is_not(None) & devices.c.revoked_at.is_(None)
            if not connection.execute(select(devices.c.name).where(devices.c.name == device, enrolled)).first():
                raise NotFoundError(f"no enrolled device {device[:64]!r}; see: fieldfare devices list")
            waiting = select(func.count()).select_from(device_commands).where(*self._unanswered(now), _of(device))
            if connection.execute(waiting).scalar_one() >= _OPEN:
                raise ConflictError(f"{_OPEN} commands wait for {device} already; is it connected?")
            connection.execute(insert(device_commands).values(**values, expires_at=now + _EXPIRES_S))
        return self.get(device, name)

    def get(self, device: str, name: str) -> DeviceCommand:
        """One command.

        Raises:
            NotFoundError: the device has no such command.
        """
        with self._engine.begin() as connection:
            return _record(self._row(connection, device, name))

    def history(self, device: str) -> list[DeviceCommand]:
        """Commands of a device, newest first."""
        query = select(device_commands).where(_of(device)).order_by(device_commands.c.created_at.desc())
        with self._engine.begin() as connection:
            return [_record(row) for row in connection.execute(query.limit(100)).mappings()]

    def archive(self, device: str, name: str) -> bytes:
        """The diagnostics archive that came in answer.

        Raises:
            NotFoundError: no such command, or no archive (yet).
        """
        with self._engine.begin() as connection:
            sha256 = self._row(connection, device, name)["sha256"]
        if sha256 is None:
            raise NotFoundError(f"{device} has sent no archive in answer to {name[:64]}")
        return self._blobs.get(str(sha256))

    def _row(self, connection: Connection, device: str, name: str) -> RowMapping:
        query = select(device_commands).where(device_commands.c.id == name, _of(device))
        row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError(f"device {device[:64]!r} was never given a command {name[:64]!r}")
        return row

    # what the gateway carries

    def due(self, connection: Connection, now: float) -> list[tuple[str, Command]]:
        """Commands that were not sent yet, with their devices."""
        query = select(device_commands).where(*self._unanswered(now), device_commands.c.sent_at.is_(None))
        ordered = query.order_by(device_commands.c.created_at)
        return [(str(row["device"]), _command(row)) for row in connection.execute(ordered).mappings()]

    def sent(self, connection: Connection, ids: Collection[str], now: float) -> None:
        """The broker has them."""
        connection.execute(update(device_commands).where(device_commands.c.id.in_(ids)).values(sent_at=now))

    def unanswered(self, connection: Connection, device: str, now: float) -> list[Command]:
        """Commands that a device has not answered and that have not expired."""
        query = select(device_commands).where(*self._unanswered(now), _of(device))
        rows = connection.execute(query.order_by(device_commands.c.created_at)).mappings()
        return [_command(row) for row in rows]

    def on_reply(self, connection: Connection, device: str, body: CommandReply, now: float) -> None:
        """Keep an answer; a second one changes nothing.

        Raises:
            NotFoundError: no such command.
            DeniedError: it is another device's.
            InvalidError: an archive that is too large, or that nobody asked for.
        """
        query = select(device_commands).where(device_commands.c.id == body.command)
        row = connection.execute(query).mappings().first()
        if row is None:
            raise NotFoundError(f"{device} answers a command that was never given: {body.command[:80]!r}")
        if row["device"] != device:
            raise DeniedError(f"{device} answers a command of another device")
        if row["answered_at"] is not None:
            return
        if len(body.content) > (limits.DIAGNOSTICS_BYTES if row["kind"] == "diagnostics" else 0):
            raise InvalidError(f"{device}: {len(body.content)} bytes in answer to {row['kind']}")
        values: dict[str, Any] = {"answered_at": now, "error": body.error[:500]}
        if body.content:
            values |= {"sha256": self._blobs.put(body.content).sha256, "size": len(body.content)}
        connection.execute(update(device_commands).where(device_commands.c.id == body.command).values(**values))

    @staticmethod
    def _unanswered(now: float) -> list[Any]:
        return [device_commands.c.answered_at.is_(None), device_commands.c.expires_at > now]


def _of(device: str) -> Any:
    return device_commands.c.device == device


def _command(row: RowMapping) -> Command:
    if row["kind"] == "diagnostics":
        return Command(id=row["id"], kind="diagnostics", expires_at=row["expires_at"])
    level, seconds = row["level"], row["seconds"]
    return Command(id=row["id"], kind="log-level", level=level, seconds=seconds, expires_at=row["expires_at"])


def _record(row: RowMapping) -> DeviceCommand:
    return DeviceCommand(**{name: row[name] for name in DeviceCommand.__struct_fields__})
