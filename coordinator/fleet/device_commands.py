"""What an operator asks of single devices now: more of their log for a while, a diagnostics archive, a measurement."""

import math
import time
from collections.abc import Callable, Collection
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, RowMapping, func, insert, select, update

from contract import codec, limits
from contract.messages import BundleRef, Command, CommandReply, Measured
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet.tables import device_commands, devices, measurements
from coordinator.records import DeviceCommand, Measurement
from coordinator.registry.tables import bundles, variants
from coordinator.signing.tables import signing_requests
from coordinator.sql import to_record
from coordinator.storage import Storage

_EXPIRES_S = 3600.0
_LONGEST_S = 7 * 86400.0
_ANSWER_BYTES = {"diagnostics": limits.DIAGNOSTICS_BYTES, "bench": limits.MEASURED_BYTES}
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

    def bench(self, device: str, bundle_sha256: str) -> DeviceCommand:
        """Ask a device to measure a signed bundle.

        Raises:
            NotFoundError: no such device, it is not enrolled, or no such bundle.
            ConflictError: the bundle is not signed, or too many commands wait for the device.
        """
        query = select(bundles).where(bundles.c.sha256 == bundle_sha256)
        signed = select(signing_requests.c.id).where(
            signing_requests.c.bundle_sha256 == bundle_sha256, signing_requests.c.state == "signed"
        )
        with self._engine.begin() as connection:
            row = connection.execute(query).mappings().first()
            if row is None:
                raise NotFoundError(f"no bundle {bundle_sha256[:64]!r}; see: fieldfare models bundles")
            if connection.execute(signed).first() is None:
                raise ConflictError(f"bundle {bundle_sha256[:12]} is not signed yet; devices take no other")
        ref = {name: row[name] for name in BundleRef.__struct_fields__}
        return self._ask(device, "bench", bundle=ref)

    def measurements(self, artifact_sha256: str) -> list[Measurement]:
        """What devices measured of an artifact (the inference `.tflite`), newest first."""
        query = select(measurements).where(measurements.c.artifact_sha256 == artifact_sha256)
        with self._engine.begin() as connection:
            rows = connection.execute(query.order_by(measurements.c.measured_at.desc()).limit(1000)).mappings()
            return [to_record(row, Measurement) for row in rows]

    def _ask(
        self, device: str, kind: str, *, level: str = "", seconds: float = 0.0, bundle: dict[str, Any] | None = None
    ) -> DeviceCommand:
        now, name = self._clock(), uuid4().hex
        values = {"id": name, "device": device, "kind": kind, "level": level, "seconds": seconds, "bundle": bundle}
        values |= {"created_at": now}
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
        if len(body.content) > _ANSWER_BYTES.get(row["kind"], 0):
            raise InvalidError(f"{device}: {len(body.content)} bytes in answer to {row['kind']}")
        values: dict[str, Any] = {"answered_at": now, "error": body.error[:500]}
        if row["kind"] == "bench" and not body.error:
            connection.execute(insert(measurements).values(**self._measurement(connection, row, body, now)))
        elif body.content:
            values |= {"sha256": self._blobs.put(body.content).sha256, "size": len(body.content)}
        connection.execute(update(device_commands).where(device_commands.c.id == body.command).values(**values))

    @staticmethod
    def _measurement(connection: Connection, row: RowMapping, body: CommandReply, now: float) -> dict[str, Any]:
        measured = codec.decode_json(body.content, Measured, limit=limits.MEASURED_BYTES)
        numbers = msgspec.to_builtins(measured)
        if not all(math.isfinite(value) and value >= 0 for value in numbers.values() if not isinstance(value, str)):
            raise InvalidError(f"{row['device']}: a measurement with a number that cannot be")
        of = row["bundle"]
        artifact = select(variants.c.tflite_sha256).where(
            variants.c.model == of["model"], variants.c.version == of["version"], variants.c.name == of["variant"]
        )
        kind = select(devices.c.hardware_class).where(devices.c.name == row["device"])
        return {
            "id": row["id"],
            "device": row["device"],
            "hardware_class": connection.execute(kind).scalar_one() or "generic",  # as the agent calls it
            "bundle_sha256": of["sha256"],
            "artifact_sha256": connection.execute(artifact).scalar_one(),
            "measured": numbers,
            "measured_at": now,
        }

    @staticmethod
    def _unanswered(now: float) -> list[Any]:
        return [device_commands.c.answered_at.is_(None), device_commands.c.expires_at > now]


def _of(device: str) -> Any:
    return device_commands.c.device == device


def _command(row: RowMapping) -> Command:
    if row["kind"] == "diagnostics":
        return Command(id=row["id"], kind="diagnostics", expires_at=row["expires_at"])
    if row["kind"] == "bench":
        ref = msgspec.convert(row["bundle"], BundleRef)
        return Command(id=row["id"], kind="bench", bundle=ref, expires_at=row["expires_at"])
    level, seconds = row["level"], row["seconds"]
    return Command(id=row["id"], kind="log-level", level=level, seconds=seconds, expires_at=row["expires_at"])


def _record(row: RowMapping) -> DeviceCommand:
    return msgspec.convert({name: row[name] for name in DeviceCommand.__struct_fields__}, DeviceCommand)
