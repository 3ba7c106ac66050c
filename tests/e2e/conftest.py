"""A real site for end-to-end tests: coordinator, broker, signer and agents as processes, and a bundle made beforehand.

The bundle's parts in tests/data/digits were made by the training and compression jobs (see README.txt there), so that
these tests need no TensorFlow.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from contract import bundle as bundles
from coordinator.client import Bundle, Client, Gate
from fieldfare.demo.outcome import Outcome
from fieldfare.demo.processes import Processes
from fieldfare.demo.screen import Screen
from fieldfare.demo.settings import MODEL, Settings
from fieldfare.demo.stations import Stations

DATA = Path(__file__).parents[1] / "data" / "digits"


@pytest.fixture(params=["embedded"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stations]:
    """Four enrolled, connected agents without a bundle, and version 1 in the registry, signed."""
    settings = Settings(folder=tmp_path, devices=4, broker=request.param)
    outcome = Outcome(devices=4, broker=request.param, drifting=settings.drifting, smallest_cohort=2)
    with Processes(tmp_path / "logs") as processes:
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
