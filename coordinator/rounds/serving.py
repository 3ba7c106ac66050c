"""Which bundle of a model a cohort serves: a run must use the bundle that its devices have."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select

from coordinator.errors import NotFoundError
from coordinator.fleet.tables import devices
from coordinator.registry.tables import bundles


@dataclass(frozen=True)
class Serving:
    """A bundle and the devices of a cohort that serve it, sorted."""

    version: int
    bundle_sha256: str
    devices: list[str]


def find(connection: Connection, model: str, names: Sequence[str], *, version: int | None = None) -> Serving:
    """The newest version of `model` that devices among `names` serve; of its bundles, the one that most of them have.

    Args:
        connection: the caller's transaction.
        model: name in the registry.
        names: devices of the cohort.
        version: look for this version only.

    Raises:
        NotFoundError: no device of the cohort serves such a bundle.
    """
    query = select(bundles.c.sha256, bundles.c.version).where(bundles.c.model == model)
    versions = {row.sha256: row.version for row in connection.execute(query)}
    wanted = {
        name: sha256
        for name, serves in _serving(connection, names).items()
        for sha256 in serves
        if sha256 in versions and version in {None, versions[sha256]}
    }
    if not wanted:
        which = model if version is None else f"{model}:{version}"
        raise NotFoundError(f"no device of the cohort ({len(names)} devices) serves {which}; roll it out first")
    counted = Counter(wanted.values())
    best = max(counted, key=lambda sha256: (versions[sha256], counted[sha256], sha256))
    return Serving(versions[best], best, sorted(name for name, sha256 in wanted.items() if sha256 == best))


def devices_with(connection: Connection, bundle_sha256: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that serve this bundle, sorted."""
    return sorted(name for name, serves in _serving(connection, names).items() if bundle_sha256 in serves)


def _serving(connection: Connection, names: Sequence[str]) -> dict[str, list[str]]:
    rows = connection.execute(select(devices.c.name, devices.c.hello).where(devices.c.name.in_(names)))
    return {row.name: [bundle["sha256"] for bundle in (row.hello or {}).get("bundles", [])] for row in rows}
