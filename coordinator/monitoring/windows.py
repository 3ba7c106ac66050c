"""Profile windows as rows, and a device's first and latest samples among them."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from sqlalchemy import Connection, insert, select

from contract import profile
from contract.messages import ProfileWindow
from contract.profile import Counts, ProfileSpec
from coordinator.monitoring.drift import History, pool
from coordinator.monitoring.tables import profile_windows as table


@dataclass(frozen=True)
class Window:
    """One window's place and size; its counts stay in the database until they are needed."""

    id: int
    samples: int


@dataclass(frozen=True)
class Split:
    """Ids of the windows that are a device's baseline, and of those that are its recent ones; they do not overlap."""

    baseline: list[int]
    recent: list[int]


def keep(connection: Connection, device: str, body: ProfileWindow, now: float) -> None:
    """Insert a window that was checked."""
    connection.execute(
        insert(table).values(
            device=device,
            bundle_sha256=body.bundle_sha256,
            profile_digest=body.profile_digest,
            started_at=body.started_at,
            ended_at=body.ended_at,
            received_at=now,
            samples=body.counts.samples,
            counts=msgspec.to_builtins(body.counts),
        )
    )


def newest(connection: Connection) -> int:
    """Id of the newest window; 0 where there is none."""
    return connection.execute(select(table.c.id).order_by(table.c.id.desc()).limit(1)).scalar() or 0


def bundles_since(connection: Connection, window: int) -> list[str]:
    """Bundles with windows newer than `window`."""
    query = select(table.c.bundle_sha256).where(table.c.id > window).distinct()
    return sorted(connection.execute(query).scalars())


def by_device(connection: Connection, bundle_sha256: str, *, since: float | None = None) -> dict[str, list[Window]]:
    """Windows under a bundle in the order of arrival, by device; `since` is the coordinator's clock."""
    query = select(table.c.device, table.c.id, table.c.samples).where(table.c.bundle_sha256 == bundle_sha256)
    if since is not None:
        query = query.where(table.c.received_at >= since)
    found: dict[str, list[Window]] = {}
    for device, window, samples in connection.execute(query.order_by(table.c.device, table.c.id)):
        found.setdefault(device, []).append(Window(window, samples))
    return found


def first(windows: Sequence[Window], samples: int) -> list[int]:
    """Ids of the first windows that hold at least `samples`; all of them where there are fewer."""
    taken: list[int] = []
    total = 0
    for window in windows:
        if total >= samples:
            break
        taken.append(window.id)
        total += window.samples
    return taken


def latest(windows: Sequence[Window], samples: int) -> list[int]:
    """Ids of the latest windows that hold at least `samples`, oldest first; all of them where there are fewer."""
    return first(list(reversed(windows)), samples)[::-1]


def split(windows: Sequence[Window], *, baseline_samples: int, window_samples: int) -> Split | None:
    """A device's baseline and recent windows; None while it has too few samples for both."""
    baseline = first(windows, baseline_samples)
    rest = windows[len(baseline) :]
    if sum(window.samples for window in windows[: len(baseline)]) < baseline_samples:
        return None
    if sum(window.samples for window in rest) < window_samples:
        return None
    return Split(baseline, latest(rest, window_samples))


def counts(connection: Connection, spec: ProfileSpec, ids: Sequence[int]) -> Counts:
    """Sum of these windows."""
    if not ids:
        return profile.zero(spec)
    query = select(table.c.counts).where(table.c.id.in_(ids))
    return pool(spec, [msgspec.convert(row, Counts) for row in connection.execute(query).scalars()])


def histories(
    connection: Connection, bundle_sha256: str, spec: ProfileSpec, *, baseline_samples: int, window_samples: int
) -> list[History]:
    """Baseline and recent counts of every device that has enough of both."""
    result = []
    for device, found in by_device(connection, bundle_sha256).items():
        parts = split(found, baseline_samples=baseline_samples, window_samples=window_samples)
        if parts is not None:
            sums = [counts(connection, spec, ids) for ids in (parts.baseline, parts.recent)]
            result.append(History(device, *sums))
    return result


def recent_of_cohort(
    connection: Connection,
    bundle_sha256: str,
    spec: ProfileSpec,
    devices: Sequence[str],
    *,
    baseline_samples: int,
    window_samples: int,
) -> Counts:
    """Sum of the latest windows of these devices; a device that still makes its baseline gives its latest so far."""
    parts = []
    for device, found in by_device(connection, bundle_sha256).items():
        if device in devices:
            rest = found[len(first(found, baseline_samples)) :] or found
            parts.append(counts(connection, spec, latest(rest, window_samples)))
    return pool(spec, parts)
