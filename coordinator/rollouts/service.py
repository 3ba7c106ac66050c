"""Rollouts: a cohort, a signed bundle, waves, and the devices' signed word on how it went."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import msgspec
from sqlalchemy import Connection, RowMapping, select, update

from contract import codec, limits, signatures
from contract.errors import SignatureError
from contract.messages import BundleRef, Receipt, SignedReceipt, Wanted
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.fleet.service import Fleet
from coordinator.records import Rollout, RolloutDevice
from coordinator.registry.tables import bundles
from coordinator.rollouts import waves as rules
from coordinator.rollouts.tables import receipts, rollout_devices, rollouts
from coordinator.rollouts.waves import Member
from coordinator.signing.service import Signing
from coordinator.signing.tables import signing_requests
from coordinator.sql import take_turns
from coordinator.storage import Storage

_TURN = "rollouts"

logger = logging.getLogger(__name__)


class Rollouts:
    """Rollouts over Storage. What a device should serve changes in the same transaction as the rollout."""

    def __init__(
        self, storage: Storage, fleet: Fleet, signing: Signing, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._engine = storage.engine
        self._fleet = fleet
        self._signing = signing
        self._clock = clock

    def start(
        self,
        bundle_sha256: str,
        *,
        cohort: str = "all",
        waves: Sequence[float] | None = None,
        max_failures: int = 0,
        device_timeout_s: float = 300.0,
        health_timeout_s: float = 0.0,
        seed: int | None = None,
    ) -> Rollout:
        """Start a rollout; it waits until the bundle is signed.

        Args:
            bundle_sha256: of a registered bundle.
            cohort: see `fleet.cohort`.
            waves, seed: see `waves.assign`; without a seed each rollout has its own.
            max_failures: refusals, rollbacks and time-outs that are borne before it fails.
            device_timeout_s: from the offer to the receipt.
            health_timeout_s: from there to the end of a device's probation, which a wave waits for; 0 does not wait.

        Raises:
            NotFoundError: no such bundle.
            InvalidError: no device, waves that cannot be, or devices that the bundle is not for.
            ConflictError: the signer refused the bundle, or a device is in another rollout of this model.
        """
        if max_failures < 0 or not 0 < device_timeout_s < math.inf or not 0 <= health_timeout_s < math.inf:
            raise InvalidError(
                "max_failures and health_timeout_s must not be negative, device_timeout_s must be positive"
            )
        id, now = uuid4().hex, self._clock()  # noqa: A001 its name
        with self._transaction() as connection:
            bundle = _bundle(connection, bundle_sha256)
            signing = self._signing.state(connection, bundle_sha256)
            if signing is not None and signing[0] == "refused":
                raise ConflictError(f"the signer refused this bundle: {signing[1]}")
            devices = self._fleet.members(connection, cohort)
            drawn = rules.assign(devices, waves, int(id[:8], 16) if seed is None else seed)
            self._check_devices(connection, bundle, devices)
            row = {key: bundle[key] for key in ("model", "version", "variant", "target")}
            row |= {"bundle_sha256": bundle_sha256, "cohort": cohort, "wave": -1, "state": rules.AWAITING}
            row |= {"max_failures": max_failures, "created_at": now}
            row |= {"device_timeout_s": device_timeout_s, "health_timeout_s": health_timeout_s}
            connection.execute(rollouts.insert().values(id=id, waves=[len(wave) for wave in drawn], **row))
            members = [(device, index) for index, wave in enumerate(drawn) for device in wave]
            for device, index in members:
                values = {"rollout": id, "device": device, "wave": index, "state": rules.PENDING, "updated_at": now}
                connection.execute(rollout_devices.insert().values(**values))
            self._advance(connection, self._row(connection, id), now)
            return self._record(connection, id)

    def _check_devices(self, connection: Connection, bundle: RowMapping, devices: Sequence[str]) -> None:
        busy = connection.execute(
            select(rollout_devices.c.device)
            .join(rollouts, rollouts.c.id == rollout_devices.c.rollout)
            .where(rollouts.c.state.in_(rules.OPEN), rollouts.c.model == bundle["model"])
        )
        taken = sorted(set(busy.scalars()) & set(devices))
        if taken:
            raise ConflictError(f"{', '.join(taken[:5])}: in another rollout of {bundle['model']} that has not ended")
        query = select(signing_requests.c.custom).where(signing_requests.c.bundle_sha256 == bundle["sha256"])
        allowed = (connection.execute(query).scalar() or {}).get("hardware_classes") or []
        misfits = [name for name in devices if allowed and self._fleet.hardware_class(connection, name) not in allowed]
        if misfits:
            raise InvalidError(f"the bundle is for {', '.join(allowed)}, not for {', '.join(misfits[:5])}")

    def get(self, id: str) -> Rollout:  # noqa: A002 its name
        """One rollout with its devices.

        Raises:
            NotFoundError: no such rollout.
        """
        with self._engine.begin() as connection:
            return self._record(connection, id)

    def every(self) -> list[Rollout]:
        """All rollouts without their devices, newest first."""
        with self._engine.begin() as connection:
            rows = connection.execute(select(rollouts).order_by(rollouts.c.created_at.desc())).mappings()
            return [_rollout(row, []) for row in rows]

    def pause(self, id: str) -> Rollout:  # noqa: A002 its name
        """Offer it to no further wave; devices that have the offer go on."""
        return self._turn(id, {rules.AWAITING, rules.ROLLING}, rules.PAUSED)

    def resume(self, id: str) -> Rollout:  # noqa: A002 its name
        """Go on; a device's time starts again."""
        return self._turn(id, {rules.PAUSED}, rules.AWAITING)

    def abort(self, id: str) -> Rollout:  # noqa: A002 its name
        """End it. Devices that activated keep the bundle, offers are withdrawn."""
        return self._turn(id, rules.OPEN, rules.ABORTED)

    def _turn(self, id: str, allowed: "set[str] | frozenset[str]", state: str) -> Rollout:  # noqa: A002 its name
        now = self._clock()
        with self._transaction() as connection:
            row = self._row(connection, id)
            if row["state"] != state:
                if row["state"] not in allowed:
                    raise ConflictError(f"rollout {id} is {row['state']}")
                self._set(connection, id, state=state)
                if state == rules.AWAITING:
                    self._restart_time(connection, id, now)
                    self._advance(connection, self._row(connection, id), now)
                elif state == rules.ABORTED:
                    self._end(connection, id, now)
            return self._record(connection, id)

    def _restart_time(self, connection: Connection, id: str, now: float) -> None:  # noqa: A002 its name
        for state, column in ((rules.OFFERED, "offered_at"), (rules.ACTIVATED, "updated_at")):
            waiting = (rollout_devices.c.rollout == id) & (rollout_devices.c.state == state)
            connection.execute(update(rollout_devices).where(waiting).values(**{column: now}))

    # what happens by itself

    def tick(self, now: float) -> None:
        """Advance every rollout that is not paused or over."""
        with self._transaction() as connection:
            moving = select(rollouts).where(rollouts.c.state.in_((rules.AWAITING, rules.ROLLING)))
            for row in connection.execute(moving.order_by(rollouts.c.created_at)).mappings().all():
                self._advance(connection, row, now)

    def _advance(self, connection: Connection, row: RowMapping, now: float) -> None:
        id = row["id"]  # noqa: A001 its name
        if row["state"] == rules.AWAITING:
            state, reason = self._signing.state(connection, row["bundle_sha256"]) or ("pending", "")
            if state == "pending":
                return
            if state == "refused":
                self._set(connection, id, state=rules.FAILED, error=f"the signer refused the bundle: {reason}")
                self._end(connection, id, now)
                return
        self._withdraw_revoked(connection, row, now)
        step = rules.advance(
            wave=row["wave"],
            members=self._members(connection, id),
            max_failures=row["max_failures"],
            device_timeout_s=row["device_timeout_s"],
            health_timeout_s=row["health_timeout_s"],
            now=now,
        )
        for device in step.timed_out:
            reason = f"no word within {row['device_timeout_s']:g} s of the offer"
            if row["health_timeout_s"]:
                reason += f", or no good health within {row['health_timeout_s']:g} s of the activation"
            self._settle(connection, id, device, rules.TIMED_OUT, reason=reason, now=now)
        for device in step.offer:
            self._offer(connection, row, device, now)
        if (step.state, step.wave, step.error) != (row["state"], row["wave"], row["error"]):
            self._set(connection, id, state=step.state, wave=step.wave, error=step.error)
            logger.info("rollout %s: %s, wave %d %s", id, step.state, step.wave, step.error)
        if step.state not in rules.OPEN:
            self._end(connection, id, now)

    def _withdraw_revoked(self, connection: Connection, row: RowMapping, now: float) -> None:
        """A device that was revoked will not answer; that is no failure of the bundle."""
        waiting = {rules.PENDING, rules.OFFERED} | ({rules.ACTIVATED} if row["health_timeout_s"] else set())
        revoked = self._fleet.revoked(connection)
        for member in self._members(connection, row["id"]) if revoked else ():
            if member.device in revoked and member.state in waiting:
                reason = "the device was revoked"
                self._settle(connection, row["id"], member.device, rules.WITHDRAWN, reason=reason, now=now)

    def _offer(self, connection: Connection, row: RowMapping, device: str, now: float) -> None:
        before = self._wanted(connection, device, row["model"])
        previous = msgspec.to_builtins(before.bundle) if before is not None and before.bundle is not None else None
        bundle = BundleRef(
            model=row["model"],
            version=row["version"],
            variant=row["variant"],
            target=row["target"],
            sha256=row["bundle_sha256"],
        )
        try:
            self._fleet.set_desired(connection, device, row["model"], row["id"], bundle)
        except ConflictError as error:
            self._settle(connection, row["id"], device, rules.REFUSED, reason=str(error), now=now)
            return
        values = {"state": rules.OFFERED, "offered_at": now, "updated_at": now, "previous": previous}
        connection.execute(update(rollout_devices).where(_member(row["id"], device)).values(**values))

    def _settle(
        self,
        connection: Connection,
        id: str,  # noqa: A002 its name
        device: str,
        state: str,
        *,
        reason: str,
        now: float,
    ) -> None:
        """Note how it went; a device that failed should serve again what it did before."""
        values = {"state": state, "reason": reason, "updated_at": now}
        connection.execute(update(rollout_devices).where(_member(id, device)).values(**values))
        if state in {rules.ACTIVATED, rules.HEALTHY}:
            return
        model = self._row(connection, id)["model"]
        wanted = self._wanted(connection, device, model)
        if wanted is not None and wanted.rollout == id:
            previous = connection.execute(select(rollout_devices.c.previous).where(_member(id, device))).scalar()
            bundle = msgspec.convert(previous, BundleRef) if previous else None
            self._fleet.set_desired(connection, device, model, None, bundle)

    def _wanted(self, connection: Connection, device: str, model: str) -> Wanted | None:
        desired = self._fleet.desired(connection, device)
        return desired.models.get(model) if desired is not None else None

    def _end(self, connection: Connection, id: str, now: float) -> None:  # noqa: A002 its name
        self._set(connection, id, finished_at=now)
        for member in self._members(connection, id):
            if member.state in {rules.PENDING, rules.OFFERED}:
                self._settle(connection, id, member.device, rules.WITHDRAWN, reason="the rollout ended", now=now)

    def on_receipt(self, connection: Connection, device: str, body: SignedReceipt, now: float) -> None:
        """Take a device's signed word. The signature is checked before anything of the payload is read.

        Raises:
            SignatureError: not signed with the device's own key, or about another device.
            MalformedError, TooLargeError: the payload is no receipt.
        """
        certificate = self._fleet.certificate(connection, device)
        if certificate is None:
            raise SignatureError(f"{device} has no certificate to check a receipt with")
        signatures.verify(certificate, body.payload, body.signature)
        receipt = codec.decode(body.payload, Receipt, limit=limits.CONTROL_BYTES)
        if receipt.device != device:
            raise SignatureError(f"a receipt of {receipt.device[:64]!r} came from {device}")
        values: dict[str, Any] = {"device": device, "rollout": receipt.rollout and receipt.rollout[:64]}
        values |= {"bundle_sha256": receipt.bundle.sha256[:64], "outcome": receipt.outcome, "reason": receipt.reason}
        values |= {"payload": body.payload, "signature": body.signature, "received_at": now}
        connection.execute(receipts.insert().values(**values))
        if receipt.rollout is not None:
            take_turns(connection, _TURN)
            self._answered(connection, receipt, now)

    def _answered(self, connection: Connection, receipt: Receipt, now: float) -> None:
        id = receipt.rollout or ""  # noqa: A001 its name
        query = (
            select(rollouts, rollout_devices.c.state.label("member_state"))
            .join(rollout_devices, rollout_devices.c.rollout == rollouts.c.id)
            .where(_member(id, receipt.device))
        )
        row = connection.execute(query).mappings().first()
        state = rules.BY_OUTCOME[receipt.outcome]
        if row is None or row["bundle_sha256"] != receipt.bundle.sha256:
            return
        if not rules.follows(row["member_state"], state):
            return
        self._settle(connection, id, receipt.device, state, reason=receipt.reason, now=now)  # also after its end
        if row["state"] == rules.ROLLING:
            self._advance(connection, self._row(connection, id), now)

    # rows

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One in which nobody else changes rollouts: the API, the loop and the gateway do so from threads of theirs."""
        with self._engine.begin() as connection:
            take_turns(connection, _TURN)
            yield connection

    def _row(self, connection: Connection, id: str) -> RowMapping:  # noqa: A002 its name
        row = connection.execute(select(rollouts).where(rollouts.c.id == id)).mappings().first()
        if row is None:
            raise NotFoundError(f"no rollout {id[:64]!r}; see: fieldfare rollouts list")
        return row

    def _set(self, connection: Connection, id: str, **values: Any) -> None:  # noqa: A002 its name
        connection.execute(update(rollouts).where(rollouts.c.id == id).values(**values))

    def _members(self, connection: Connection, id: str) -> list[Member]:  # noqa: A002 its name
        query = select(rollout_devices).where(rollout_devices.c.rollout == id).order_by(rollout_devices.c.device)
        return [
            Member(r.device, r.wave, r.state, r.offered_at, r.updated_at if r.state == rules.ACTIVATED else None)
            for r in connection.execute(query)
        ]

    def _record(self, connection: Connection, id: str) -> Rollout:  # noqa: A002 its name
        query = select(rollout_devices).where(rollout_devices.c.rollout == id)
        rows = connection.execute(query.order_by(rollout_devices.c.wave, rollout_devices.c.device))
        devices = [
            RolloutDevice(device=r.device, wave=r.wave, state=r.state, reason=r.reason, updated_at=r.updated_at)
            for r in rows
        ]
        return _rollout(self._row(connection, id), devices)


def _member(rollout: str, device: str) -> Any:
    return (rollout_devices.c.rollout == rollout) & (rollout_devices.c.device == device)


def _bundle(connection: Connection, sha256: str) -> RowMapping:
    row = connection.execute(select(bundles).where(bundles.c.sha256 == sha256)).mappings().first()
    if row is None:
        raise NotFoundError(f"no bundle {sha256[:64]!r}; see: fieldfare models bundles")
    return row


def _rollout(row: RowMapping, devices: list[RolloutDevice]) -> Rollout:
    named = {name: row[name] for name in ("id", "model", "version", "variant", "bundle_sha256", "cohort", "state")}
    return Rollout(
        **named,
        waves=row["waves"],
        wave=row["wave"],
        error=row["error"] or None,
        created_at=row["created_at"],
        devices=devices,
    )
