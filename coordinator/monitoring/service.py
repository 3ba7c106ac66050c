"""Monitoring: takes profile windows, looks for drift, raises alerts, and has them answered by policy."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from uuid import uuid4

from sqlalchemy import Connection, select

from contract import bundle, profile
from contract.errors import ProfileError
from contract.messages import ProfileWindow
from contract.profile import Reference
from coordinator.config import Config
from coordinator.errors import CallerError, InvalidError, NotFoundError
from coordinator.monitoring import alerts, drift, report, windows
from coordinator.monitoring.drift import Assessment, History
from coordinator.monitoring.tables import profile_windows
from coordinator.records import Alert
from coordinator.registry.tables import bundles
from coordinator.storage import Storage

logger = logging.getLogger(__name__)

_PATIENCE_LOOKS = 5  # a cohort that keeps growing is waited for this often


class Answer(Protocol):
    """Starts a run that answers an alert, in the caller's transaction, and returns its id."""

    def __call__(self, connection: Connection, alert: Alert, now: float) -> str:
        """Raises CallerError where no run can be started."""


class Monitoring:
    """Drift of devices and of the fleet, from integer counts alone."""

    def __init__(
        self,
        storage: Storage,
        config: Config,
        *,
        answer: Answer,
        cohort: Callable[[Connection, str], Sequence[str]],
    ) -> None:
        """Compose the service.

        Args:
            storage: database and blobs.
            config: `drift`, `policy` and `smallest_cohort` are used.
            answer: starts the run that `policy.action = "run"` asks for.
            cohort: names of the devices that a cohort query finds; raises CallerError.
        """
        self._storage = storage
        self._config = config
        self._answer = answer
        self._cohort = cohort
        self._references: dict[str, Reference] = {}
        self._looked_at = -math.inf
        self._seen_window = 0
        self._pending: dict[str, tuple[set[str], int]] = {}  # bundle to devices that drift, and looks so far
        self._said: dict[str, str] = {}  # alert to why it is not answered yet

    def on_profile_window(self, connection: Connection, device: str, body: ProfileWindow, now: float) -> None:
        """Keep a window.

        Raises:
            NotFoundError: a bundle that the registry does not know.
            ProfileError: other bins than the bundle's, or counts that cannot be.
            InvalidError: times that are none.
        """
        reference = self._reference(connection, body.bundle_sha256)
        if reference.spec.digest() != body.profile_digest:
            raise ProfileError(f"{device}: a window under other bins than those of bundle {body.bundle_sha256[:12]}")
        profile.check_counts(reference.spec, body.counts)
        if not -math.inf < body.started_at <= body.ended_at < math.inf:
            raise InvalidError(f"{device}: a window from {body.started_at} to {body.ended_at}")
        if body.counts.samples:
            windows.keep(connection, device, body, now)

    def _reference(self, connection: Connection, bundle_sha256: str) -> Reference:
        if bundle_sha256 not in self._references:
            known = connection.execute(select(bundles.c.sha256).where(bundles.c.sha256 == bundle_sha256)).first()
            if known is None:
                raise NotFoundError(f"no bundle {bundle_sha256[:80]}")
            self._references[bundle_sha256] = bundle.unpack(self._storage.blobs.get(bundle_sha256)).profile
        return self._references[bundle_sha256]

    def alerts(self, connection: Connection) -> list[Alert]:
        """The newest alerts first."""
        return alerts.every(connection)

    def report(
        self,
        connection: Connection,
        model: str,
        *,
        version: int | None = None,
        since: float | None = None,
        cohort: str = "all",
    ) -> dict[str, Any]:
        """How a model's devices are doing: pooled against the bundle's reference, and each against its own past.

        Args:
            connection: the caller's transaction.
            model: name in the registry.
            version: None means the newest that sent a window.
            since: only windows received at or after this moment.
            cohort: query; only these devices.

        Raises:
            NotFoundError: no such model or version, or no window of it.
            CallerError: a cohort query that makes no sense.
        """
        found = self._bundle(connection, model, version)
        reference = self._reference(connection, found["sha256"])
        settings = self._config.drift
        names = None if cohort == "all" else set(self._cohort(connection, cohort))
        by_device = {
            device: rows
            for device, rows in windows.by_device(connection, found["sha256"], since=since).items()
            if names is None or device in names
        }
        latest = {
            device: windows.counts(connection, reference.spec, windows.latest(rows, settings.window_samples))
            for device, rows in by_device.items()
        }
        head = {"model": model, "version": found["version"], "bundle_sha256": found["sha256"], "cohort": cohort}
        histories = [each for each in self._histories(connection, found["sha256"], reference) if each.device in latest]
        return report.make(
            head | {"counted": sum(window.samples for rows in by_device.values() for window in rows)},
            reference,
            latest,
            self._assess(reference, histories),
            settings,
            smallest=self._config.smallest_cohort,
        )

    def _bundle(self, connection: Connection, model: str, version: int | None) -> dict[str, Any]:
        table = profile_windows
        query = select(bundles.c.sha256, bundles.c.version).join_from(
            bundles, table, table.c.bundle_sha256 == bundles.c.sha256
        )
        query = query.where(bundles.c.model == model)
        if version is not None:
            query = query.where(bundles.c.version == version)
        row = (
            connection.execute(query.order_by(bundles.c.version.desc(), table.c.id.desc()).limit(1)).mappings().first()
        )
        if row is None:
            which = model if version is None else f"{model}:{version}"
            raise NotFoundError(f"no device has sent a profile of {which} yet")
        return dict(row)

    def _histories(self, connection: Connection, sha256: str, reference: Reference) -> list[History]:
        settings = self._config.drift
        sizes = {"baseline_samples": settings.baseline_samples, "window_samples": settings.window_samples}
        return windows.histories(connection, sha256, reference.spec, **sizes)

    def _assess(self, reference: Reference, histories: list[History]) -> Assessment:
        settings = self._config.drift
        return drift.assess(reference.spec, histories, alpha=settings.alpha, materiality=settings.materiality)

    def tick(self, now: float) -> None:
        """Look for drift, every `drift.interval_s` seconds, in the bundles that have news."""
        if now - self._looked_at < self._config.drift.interval_s:
            return
        self._looked_at = now
        with self._storage.engine.begin() as connection:
            newest = windows.newest(connection)
            news = set(windows.bundles_since(connection, self._seen_window)) | set(self._pending)
        for sha256 in sorted(news):
            with self._storage.engine.begin() as connection:
                self._look(connection, sha256, now)
        self._seen_window = newest
        if self._config.policy.action == "run":
            with self._storage.engine.begin() as connection:
                for alert in alerts.unanswered(connection):
                    self._start(connection, alert, now)

    def _look(self, connection: Connection, sha256: str, now: float) -> None:
        reference = self._reference(connection, sha256)
        histories = self._histories(connection, sha256, reference)
        assessment = self._assess(reference, histories)
        cohort = set(assessment.drifting)
        since = now - self._config.policy.retry_s
        if len(cohort) < self._config.smallest_cohort or alerts.covers(connection, sha256, cohort, since=since):
            self._pending.pop(sha256, None)
            return
        before, looks = self._pending.get(sha256, (set(), 0))
        if cohort <= before or looks >= _PATIENCE_LOOKS:
            self._pending.pop(sha256, None)
            self._raise(connection, sha256, reference, [each for each in histories if each.device in cohort], now)
        else:  # one look is not enough: the cohort may still be growing, and chance rarely strikes twice
            self._pending[sha256] = (cohort, looks + 1)

    def _raise(
        self, connection: Connection, sha256: str, reference: Reference, histories: list[History], now: float
    ) -> None:
        row = connection.execute(select(bundles.c.model, bundles.c.version).where(bundles.c.sha256 == sha256)).one()
        test = drift.worst(reference.spec, histories)
        alert = Alert(
            id=uuid4().hex[:12],
            created_at=now,
            model=row.model,
            version=row.version,
            bundle_sha256=sha256,
            cohort=sorted(each.device for each in histories),
            feature=test.feature,
            statistic=test.statistic,
            p_value=test.p_value,
            details=report.alert_details(reference.spec, histories),
        )
        alerts.create(connection, alert)
        logger.warning(
            "drift on %s:%d: %s of %d devices, PSI %.3f, p %.2g",
            alert.model,
            alert.version,
            alert.feature,
            len(alert.cohort),
            alert.statistic,
            alert.p_value,
        )

    def _start(self, connection: Connection, alert: Alert, now: float) -> None:
        try:
            run = self._answer(connection, alert, now)
        except CallerError as error:  # for example a run on this bundle that has not ended; the next look tries again
            if self._said.get(alert.id) != str(error):
                logger.warning("alert %s is not answered yet: %s", alert.id, error)
            self._said[alert.id] = str(error)
            return
        self._said.pop(alert.id, None)
        alerts.answer(connection, alert.id, run)
