"""Bundles come over the coordinator's API where the owner says so; MQTT carries the word and the receipts alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract import bundle
from coordinator.records import Bundle, Gate
from tests.fakes import agent_bundles
from tests.fakes.broker_process import eventually
from tests.fakes.enrolled_agent import Agent
from tests.fakes.served_site import ServedSite

pytestmark = pytest.mark.slow


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ServedSite]:
    made = ServedSite(tmp_path / "site", "--broker", "embedded")
    yield made
    made.close()


def _register(site: ServedSite) -> Bundle:
    made = bundle.unpack(agent_bundles.make())
    parts = {role: site.client.put_blob(content).sha256 for role, content in made.files.items()}
    site.client.create_version("thirds", task="t", weights_sha256=parts["weights"], metrics={})
    gate = Gate(passed=True)
    site.client.create_variant("thirds", 1, name="float", tflite_sha256=parts["inference"], report={}, gate=gate)
    manifest = made.manifest
    return site.client.create_bundle(
        "thirds",
        1,
        "float",
        parts=parts,
        labels=manifest.labels,
        temperature=manifest.temperature,
        golden_tolerance=manifest.golden_tolerance,
        training=manifest.training,
    )


def test_metadata_and_bundle_come_over_https_by_configuration(
    site: ServedSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIELDFARE_AGENT_UPDATES__TRANSPORT", "https")
    agent = Agent(site, tmp_path / "agent", "meter-1")
    agent.start()
    try:
        agent.until("connected")
        rollout = site.client.start_rollout(_register(site).sha256)
        agent.until("activated")
        assert eventually(lambda: site.client.rollout(rollout.id).state == "done", 60), agent.log.read_text()
    finally:
        agent.stop()
    taken = site.client.metrics()
    assert 'fieldfare_gateway_messages_total{channel="report"}' in taken
    for channel in ("pull", "metadata"):
        assert f'fieldfare_gateway_messages_total{{channel="{channel}"}}' not in taken
