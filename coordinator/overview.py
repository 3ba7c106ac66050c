"""The coordinator at a glance: the numbers behind `/v1/status` and `/metrics`."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Column, Connection, func, select

from coordinator import records
from coordinator.fleet.tables import devices
from coordinator.jobs.tables import jobs
from coordinator.registry.tables import models
from coordinator.rollouts.tables import rollouts
from coordinator.rounds.tables import runs
from coordinator.signing.tables import signing_requests, tuf_metadata


def read(
    connection: Connection,
    *,
    version: str,
    started_at: float,
    broker: Mapping[str, Any],
    expires: Mapping[str, float],
    dropped: Mapping[str, int],
) -> records.Status:
    """The status from the database, and from what only the process knows.

    Args:
        connection: the caller's transaction.
        version: of the program.
        started_at: seconds since the epoch.
        broker: kind, host, port, connected.
        expires: by role, when the offline metadata does; seconds since the epoch.
        dropped: messages that the gateway dropped, by reason.
    """
    enrolled = select(func.count()).select_from(devices).where(devices.c.enrolled_at.is_not(None))
    connected = select(func.count()).select_from(devices).where(devices.c.connected)
    waiting = select(func.count()).select_from(signing_requests).where(signing_requests.c.state == "pending")
    root = select(tuf_metadata.c.name).where(tuf_metadata.c.name == "1.root.json")
    return records.Status(
        version=version,
        started_at=started_at,
        broker=dict(broker),
        devices={
            "total": connection.execute(select(func.count()).select_from(devices)).scalar_one(),
            "enrolled": connection.execute(enrolled).scalar_one(),
            "connected": connection.execute(connected).scalar_one(),
        },
        models=connection.execute(select(func.count()).select_from(models)).scalar_one(),
        jobs=_by_state(connection, jobs.c.state),
        rollouts=_by_state(connection, rollouts.c.state),
        runs=_by_state(connection, runs.c.state),
        signing={
            "published": connection.execute(root).first() is not None,
            "waiting": connection.execute(waiting).scalar_one(),
            "expires": dict(expires),
        },
        dropped=dict(dropped),
    )


def _by_state(connection: Connection, column: Column[str]) -> dict[str, int]:
    rows = connection.execute(select(column, func.count()).group_by(column))
    return {str(state): number for state, number in rows}


def prometheus(status: records.Status, *others: Collector) -> bytes:
    """The same as Prometheus text, and what other collectors count."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (_Numbers(status), *others):
        registry.register(collector)
    return bytes(generate_latest(registry))


class _Numbers(Collector):
    def __init__(self, status: records.Status) -> None:
        self._status = status

    def collect(self) -> list[Metric]:
        """One family for each number of the status."""
        status = self._status
        connected = GaugeMetricFamily("fieldfare_broker_connected", "Whether the gateway is connected to the broker.")
        connected.add_metric([], float(bool(status.broker.get("connected"))))
        waiting = GaugeMetricFamily("fieldfare_signatures_waiting", "Bundles that wait for the signer.")
        waiting.add_metric([], float(status.signing["waiting"]))
        expires = GaugeMetricFamily(
            "fieldfare_metadata_expires_timestamp_seconds", "When offline metadata expires.", labels=["role"]
        )
        for role, at in status.signing["expires"].items():
            expires.add_metric([role], at)
        return [
            connected,
            waiting,
            expires,
            _gauge("devices", "Devices.", status.devices),
            _gauge("jobs", "Jobs.", status.jobs),
            _gauge("rollouts", "Rollouts.", status.rollouts),
            _gauge("runs", "Federated runs.", status.runs),
        ]


def _gauge(name: str, text: str, by_state: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"fieldfare_{name}", text, labels=["state"])
    for state, number in by_state.items():
        family.add_metric([state], number)
    return family
