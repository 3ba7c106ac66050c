"""Who is enrolled, who is there, and what each device should serve."""

import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, RowMapping, delete, insert, select, update

from contract import codec, limits, signatures, topics
from contract.errors import WireError
from contract.messages import Alert, BundleRef, Desired, Gone, Hello, Wanted
from coordinator import pki
from coordinator.config import Config
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet import certificates, presence
from coordinator.fleet import cohort as cohorts
from coordinator.fleet.tables import device_alerts, devices, received
from coordinator.pki import Authority
from coordinator.records import Device, DeviceAlert, DeviceToken
from coordinator.sql import insert_once
from coordinator.storage import Storage

RENEWAL = "renew"  # audience of the tokens with which a device asks for a new certificate

_CLASS_LENGTH = 63
_CLOCK_S = 300.0  # how far a device's clock may be off
_ALERT_KIND, _ALERT_TEXT, _ALERT_MODEL = 32, 2000, 128  # characters
_ALERTS_KEPT, _ALERTS_SHOWN = 100, 10  # of a device
_REASON_LENGTH = 500
_KICKS = 3  # a handshake that was under way when the list of revoked certificates changed may still have succeeded
_DENIED = "this enrolment token is unknown, used or expired; ask for a new one"


class Enrolment(NamedTuple):
    """What a device gets for its token: who it is now, and where to go."""

    device: str
    certificate: bytes
    ca: bytes
    broker_host: str
    broker_port: int


class Fleet:
    """Devices over Storage."""

    def __init__(
        self, storage: Storage, config: Config, authority: Authority, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = storage.engine
        self._config = config
        self._authority = authority
        self._clock = clock

    # enrolment

    def add(
        self, name: str, tags: Mapping[str, str] | None = None, hardware_class: str = "", *, again: bool = False
    ) -> DeviceToken:
        """Expect a device; a new token replaces one that was not used.

        Args:
            name: of the device.
            tags, hardware_class: what is known of it; with `again`, empty ones leave what is there.
            again: it is enrolled or revoked, and shall enrol anew. It stays as it is until it does.

        Returns: the one-time token; only its hash is kept.

        Raises:
            TopicError: no name for a device.
            InvalidError: tags or hardware class that do not fit.
            ConflictError: it is enrolled or revoked, and not `again`.
        """
        topics.check_device(name)
        _check_class(hardware_class)
        token = secrets.token_urlsafe(32)
        now = self._clock()
        expires_at = now + self._config.token_hours * 3600.0
        about: dict[str, Any] = {"tags": cohorts.check_tags(tags or {}), "hardware_class": hardware_class}
        secret = {"token_sha256": _digest(token), "token_expires_at": expires_at, "token_used_at": None}
        with self._engine.begin() as connection:
            if not insert_once(connection, devices, {"name": name, "created_at": now, **about, **secret}):
                row = connection.execute(select(devices).where(devices.c.name == name).with_for_update()).one()
                known = row.certificate_pem is not None or row.revoked_at is not None
                if known and not again:
                    state = "is revoked" if row.revoked_at is not None else "is enrolled already"
                    raise ConflictError(f"device {name} {state}; for a token to enrol it anew: devices add --again")
                values = {key: value for key, value in about.items() if value or not known} | secret
                connection.execute(update(devices).where(devices.c.name == name).values(**values))
        return DeviceToken(name=name, token=token, expires_at=expires_at)

    def enrol(self, token: str, csr_pem: bytes, hardware_class: str) -> Enrolment:
        """Exchange a token and a certificate request for a certificate; the token is used up.

        The key that used it up may show it again until it expires, and gets the same certificate: the first answer
        may have been lost on its way. A device that enrols anew with another key ends what the old key could do.

        Raises:
            DeniedError: a token that is unknown, used or expired.
            InvalidError: a request that is not for this device, or with a key that was revoked.
        """
        _check_class(hardware_class)
        now, digest = self._clock(), _digest(token)
        with self._engine.begin() as connection:
            query = select(devices).where(devices.c.token_sha256 == digest).with_for_update()
            row = connection.execute(query).first()
            if row is None or not hmac.compare_digest(row.token_sha256, digest) or row.token_expires_at < now:
                raise DeniedError(_DENIED)
            moment = datetime.fromtimestamp(now, UTC)
            days = self._config.certificate_days
            certificate = self._authority.sign_csr(csr_pem, row.name, days=days, now=moment)
            old = None if row.certificate_pem is None else row.certificate_pem.encode()
            same_key = old is not None and pki.same_key(old, certificate)
            if row.token_used_at is None:
                if same_key and row.revoked_at is not None:
                    raise InvalidError("the key of this request was revoked; use: edge-agent enrol --again --new-key")
                if old is not None and not same_key:
                    certificates.revoke(connection, row.name, now)
                values = {"certificate_pem": certificate.decode(), "enrolled_at": now, "token_used_at": now}
                values |= {
                    "revoked_at": None,
                    "revoked_reason": "",
                    "kicks_left": int(old is not None and not same_key),
                }
                values["hardware_class"] = hardware_class or row.hardware_class
                connection.execute(update(devices).where(devices.c.name == row.name).values(**values))
                certificates.note(connection, row.name, certificate, now)
            elif same_key and old is not None:
                certificate = old
            else:
                raise DeniedError(_DENIED)
        host = self._config.broker_host or self._config.host
        return Enrolment(row.name, certificate, self._authority.ca_pem, host, self._config.broker_port)

    def renew(self, connection: Connection, device: str) -> bytes:
        """A new certificate for the key that an enrolled device has.

        A certificate with more than half of its time left is given again: the first answer may have been lost, and a
        device whose clock is wrong may ask without end.

        Raises:
            DeniedError: it is not enrolled, or is revoked.
        """
        now = self._clock()
        current = self.certificate(connection, device)
        if current is None:
            raise DeniedError("this device is not enrolled, or is revoked")
        begin, end = pki.validity(current)
        if end - now > (end - begin) / 2:
            return current
        moment, days = datetime.fromtimestamp(now, UTC), self._config.certificate_days
        made = self._authority.renew(current, device, days=days, now=moment)
        connection.execute(update(devices).where(devices.c.name == device).values(certificate_pem=made.decode()))
        certificates.note(connection, device, made, now)
        return made

    def revoke(self, name: str, reason: str = "") -> Device:
        """End what a device may do, now and until it enrols anew with another key: broker, reports, tokens, renewal.

        The broker hears of it from `coordinator.fleet.revocation`.

        Raises:
            NotFoundError: no such device.
            InvalidError: a reason that is too long.
        """
        if len(reason) > _REASON_LENGTH:
            raise InvalidError(f"a reason of {len(reason)} characters; at most {_REASON_LENGTH}")
        now = self._clock()
        values: dict[str, Any] = {"revoked_at": now, "revoked_reason": reason, "connected": False, "kicks_left": _KICKS}
        values |= {"token_sha256": None, "token_expires_at": 0.0}
        with self._engine.begin() as connection:
            active = (devices.c.name == name) & devices.c.revoked_at.is_(None)
            if connection.execute(update(devices).where(active).values(**values)).rowcount:
                certificates.revoke(connection, name, now)
        return self.get(name)

    def device_of(self, token: str, audience: str) -> str:
        """Who signed a request: the device of a token that its own key signed, for this audience, and now.

        Raises:
            DeniedError: anything else; the message says what, and nothing of the token.
        """
        try:
            claim, payload, signature = signatures.read_token(token)
            with self._engine.begin() as connection:
                certificate = self.certificate(connection, claim.device)
            if certificate is None:
                raise DeniedError("this device is not enrolled, or is revoked")
            signatures.verify(certificate, payload, signature)
        except WireError as error:
            raise DeniedError(f"the device's token is not good: {error}") from error
        grace = self._config.renewal_grace_days * 86400.0 if audience == RENEWAL else 0.0
        if self._clock() > pki.validity(certificate)[1] + grace:
            raise DeniedError("the device's certificate has expired; use: edge-agent enrol --again")
        if claim.audience != audience:
            raise DeniedError(f"the device's token is for another purpose than {audience}")
        left = claim.not_after - self._clock()
        if not -_CLOCK_S <= left <= limits.TOKEN_LIFE_S + _CLOCK_S:
            raise DeniedError("the device's token has expired or lasts too long; is the device's clock right?")
        return claim.device

    # queries

    def get(self, name: str) -> Device:
        """One device.

        Raises:
            NotFoundError: no such device.
        """
        with self._engine.begin() as connection:
            row = connection.execute(select(devices).where(devices.c.name == name)).mappings().first()
            alerts = self._alerts(connection, name)
        if row is None:
            raise NotFoundError(f"no device {name[:64]!r}; add it with: fieldfare devices add")
        return msgspec.structs.replace(_record(row), alerts=alerts)

    def _alerts(self, connection: Connection, name: str) -> list[DeviceAlert]:
        columns = [device_alerts.c[field.name] for field in msgspec.structs.fields(DeviceAlert)]
        query = select(*columns).where(device_alerts.c.device == name).order_by(device_alerts.c.id.desc())
        return [DeviceAlert(**row) for row in connection.execute(query.limit(_ALERTS_SHOWN)).mappings()]

    def find(self, cohort: str = "all") -> list[Device]:
        """Devices of a cohort by name, those that are expected but not enrolled too."""
        query = cohorts.parse(cohort)
        with self._engine.begin() as connection:
            rows = connection.execute(select(devices).order_by(devices.c.name)).mappings().all()
        return [_record(row) for row in rows if _matches(query, row)]

    def members(self, connection: Connection, cohort: str) -> list[str]:
        """Names of the enrolled devices of a cohort that are not revoked, sorted.

        Raises:
            InvalidError: a query that cannot be read.
        """
        query = cohorts.parse(cohort)
        good = devices.c.certificate_pem.is_not(None) & devices.c.revoked_at.is_(None)
        enrolled = select(devices).where(good).order_by(devices.c.name)
        return [row["name"] for row in connection.execute(enrolled).mappings() if _matches(query, row)]

    def certificate(self, connection: Connection, device: str) -> bytes | None:
        """The newest certificate of an enrolled device, None for one that is revoked."""
        query = select(devices.c.certificate_pem).where(devices.c.name == device, devices.c.revoked_at.is_(None))
        found = connection.execute(query).scalar()
        return found.encode() if found else None

    def is_enrolled(self, connection: Connection, device: str) -> bool:
        """Whether a device has a certificate of ours, and is not revoked."""
        return self.certificate(connection, device) is not None

    def revoked(self, connection: Connection) -> frozenset[str]:
        """Names of the devices that are revoked."""
        return frozenset(connection.execute(select(devices.c.name).where(devices.c.revoked_at.is_not(None))).scalars())

    def hardware_class(self, connection: Connection, device: str) -> str:
        """What the device said it is."""
        return str(connection.execute(select(devices.c.hardware_class).where(devices.c.name == device)).scalar() or "")

    # what devices say of themselves

    def on_hello(self, connection: Connection, device: str, hello: Hello, now: float) -> bool:
        """The device is there; False where this hello is not newer than the last one, so that it says nothing."""
        if not presence.is_newer(self._hello(connection, device), hello):
            return False
        values: dict[str, Any] = {"connected": True, "boot": hello.boot, "last_seen": now}
        values["hello"] = msgspec.to_builtins(hello)
        if hello.hardware_class and len(hello.hardware_class) <= _CLASS_LENGTH:
            values["hardware_class"] = hello.hardware_class
        connection.execute(update(devices).where(devices.c.name == device).values(**values))
        return True

    def on_gone(self, connection: Connection, device: str, gone: Gone, now: float) -> None:
        """That connection ended; a device that has connected again since is there."""
        if presence.ends(self._hello(connection, device), gone):
            mine = devices.c.name == device
            connection.execute(update(devices).where(mine).values(connected=False, last_seen=now))

    def _hello(self, connection: Connection, device: str) -> dict[str, Any]:
        return connection.execute(select(devices.c.hello).where(devices.c.name == device)).scalar() or {}

    def on_alert(self, connection: Connection, device: str, alert: Alert, now: float) -> None:
        """Keep what a device's owner should know; the newest 100 of each device.

        Raises:
            InvalidError: no kind, too long, or no time.
        """
        if not 0 < len(alert.kind) <= _ALERT_KIND or len(alert.text) > _ALERT_TEXT or len(alert.model) > _ALERT_MODEL:
            raise InvalidError(f"{device}: an alert without a kind, or longer than {_ALERT_TEXT} characters")
        if not -math.inf < alert.at < math.inf:
            raise InvalidError(f"{device}: an alert at {alert.at}")
        values = {"device": device, "received_at": now, **msgspec.structs.asdict(alert)}
        connection.execute(insert(device_alerts).values(**values))
        mine = device_alerts.c.device == device
        newest = select(device_alerts.c.id).where(mine).order_by(device_alerts.c.id.desc())
        last_kept = connection.execute(newest.offset(_ALERTS_KEPT - 1).limit(1)).scalar()
        if last_kept is not None:
            connection.execute(delete(device_alerts).where(mine, device_alerts.c.id < last_kept))

    def receive(self, connection: Connection, device: str, outbox: str, seq: int, *, now: float, dropped: str) -> bool:
        """Note a report; False if it was noted before, so its effect must not happen again."""
        row = {"device": device, "outbox": outbox, "seq": seq, "received_at": now, "dropped": dropped}
        return insert_once(connection, received, row)

    # desired state

    def set_desired(
        self, connection: Connection, device: str, model: str, rollout: str | None, bundle: BundleRef | None
    ) -> Desired:
        """Say what a device should serve of a model, None for nothing; other models stay. The gateway tells it.

        Raises:
            ConflictError: so many models that the device could not be told.
        """
        before = self.desired(connection, device)
        revision = (before.revision if before else 0) + 1
        wanted = Wanted(revision=revision, rollout=rollout, bundle=bundle)
        desired = Desired(revision=revision, models={**(before.models if before else {}), model: wanted})
        if len(codec.encode_json(desired)) > limits.CONTROL_BYTES:
            raise ConflictError(f"{device}: {len(desired.models)} models are more than one device can be told of")
        values = {"desired": msgspec.to_builtins(desired), "desired_revision": revision}
        connection.execute(update(devices).where(devices.c.name == device).values(**values))
        return desired

    def desired(self, connection: Connection, device: str) -> Desired | None:
        """What a device should serve, None if nobody has said."""
        found = connection.execute(select(devices.c.desired).where(devices.c.name == device)).scalar()
        return msgspec.convert(found, Desired) if found else None

    def unpublished(self, connection: Connection) -> list[tuple[str, Desired]]:
        """Devices whose desired state the broker does not hold yet."""
        stale = devices.c.desired_revision > devices.c.published_revision
        rows = connection.execute(select(devices.c.name, devices.c.desired).where(stale).order_by(devices.c.name))
        return [(row.name, msgspec.convert(row.desired, Desired)) for row in rows]

    def published(self, connection: Connection, device: str, revision: int) -> None:
        """The broker has taken this revision."""
        connection.execute(update(devices).where(devices.c.name == device).values(published_revision=revision))

    def republish(self, connection: Connection) -> None:
        """Forget what was published: the broker may have lost its retained messages."""
        connection.execute(update(devices).values(published_revision=0))

    def forget_connections(self, connection: Connection) -> None:
        """Nobody counts as connected until it says hello: we may have missed last wills."""
        connection.execute(update(devices).values(connected=False))


def _matches(query: cohorts.Cohort, row: RowMapping) -> bool:
    return query.matches(name=row["name"], hardware_class=row["hardware_class"], tags=row["tags"])


def _record(row: RowMapping) -> Device:
    return Device(
        name=row["name"],
        hardware_class=row["hardware_class"] or None,
        tags=row["tags"],
        enrolled_at=row["enrolled_at"],
        connected=row["connected"],
        last_seen=row["last_seen"],
        hello=row["hello"],
        desired=row["desired"],
        certificate_expires_at=pki.validity(row["certificate_pem"].encode())[1] if row["certificate_pem"] else None,
        revoked_at=row["revoked_at"],
        revoked_reason=row["revoked_reason"],
    )


def _check_class(name: str) -> None:
    if len(name) > _CLASS_LENGTH or any(sign in name for sign in ",;= \t\n"):
        raise InvalidError(f"hardware class {name[:64]!r}: at most {_CLASS_LENGTH} characters, no spaces , ; =")


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
