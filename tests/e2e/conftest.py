"""A real site for end-to-end tests: coordinator, broker, signer and agents as processes, and a bundle made beforehand.

The bundle's parts in tests/data/digits were made by the training and compression jobs (see README.txt there), so that
these tests need no TensorFlow.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from sqlalchemy import create_engine, text

from contract import bundle as bundles
from coordinator.client import Bundle, Client, Gate
from fieldfare.demo.outcome import Outcome
from fieldfare.demo.processes import Processes
from fieldfare.demo.screen import Screen
from fieldfare.demo.settings import MODEL, Settings
from fieldfare.demo.stations import Stations

DATA = Path(__file__).parents[1] / "data" / "digits"


@dataclass(frozen=True)
class ProductionSettings(Settings):
    """As a production site is set up: Mosquitto and PostgreSQL."""

    database: str = ""

    def coordinator(self) -> dict[str, Any]:
        return super().coordinator() | {"database": self.database}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Stations]:
    """Four enrolled, connected agents without a bundle, and version 1 in the registry, signed."""
    with running(Settings(folder=tmp_path, devices=4)) as stations:
        yield stations


@pytest.fixture
def production_site(tmp_path: Path, postgresql_server: str) -> Iterator[Stations]:
    """The same on Mosquitto and PostgreSQL."""
    name = f"site_{uuid4().hex[:12]}"
    url = "postgresql+psycopg://fieldfare@/{}?host=" + postgresql_server
    admin = create_engine(url.format("postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.dispose()
    settings = ProductionSettings(folder=tmp_path, devices=4, broker="mosquitto", database=url.format(name))
    with running(settings) as stations:
        yield stations


@contextmanager
def running(settings: Settings) -> Iterator[Stations]:
    """Start everything; end it all afterwards."""
    outcome = Outcome(devices=4, broker=settings.broker, drifting=settings.drifting, smallest_cohort=2)
    with Processes(settings.folder / "logs") as processes:
        stations = Stations(settings, Screen(), processes, outcome)
        stations.start_coordinator()
        stations._bundles[1] = publish(stations.client)
        stations.enrol()
        yield stations
        stations.client.close()


def publish(client: Client) -> Bundle:
    """Register version 1 from the parts in tests/data/digits."""
    made = bundles.unpack((DATA / "bundle.zip").read_bytes())
    parts = {role: client.put_blob(content).sha256 for role, content in made.files.items()}
    version = client.create_version(MODEL, task=MODEL, weights_sha256=parts["weights"], metrics={})
    client.create_variant(
        MODEL,
        version.version,
        name=made.manifest.variant,
        tflite_sha256=parts["inference"],
        report={},
        gate=Gate(passed=True),
    )
    manifest = msgspec.structs.asdict(made.manifest)
    fields = ("labels", "temperature", "golden_tolerance", "training", "hardware_classes", "min_agent_version")
    return client.create_bundle(
        MODEL, version.version, made.manifest.variant, parts=parts, **{name: manifest[name] for name in fields}
    )
