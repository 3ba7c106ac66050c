"""The agent as a process, over both real brokers: it pulls, verifies, activates, infers, counts and trains."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract import messages, tensors
from contract.bundle import Bundle, unpack
from coordinator.signing import repository
from edge_agent import training
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["embedded", pytest.param("mosquitto", marks=pytest.mark.mosquitto)])
def broker(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path_factory.mktemp("broker"), request.param)
    yield running
    running.stop()


@pytest.fixture
def coordinator(broker: BrokerProcess) -> Iterator[Coordinator]:
    running = Coordinator(broker)
    yield running
    running.stop()


@pytest.fixture
def agent(coordinator: Coordinator, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[AgentProcess]:
    name = f"meter-{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    running = AgentProcess(coordinator, tmp_path / "agent", name)
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert running.events()[-1]["event"] == "stopped"
    assert "Traceback" not in running.log.read_text()


def test_a_signed_bundle_is_activated_serves_and_every_inference_is_counted_once(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    device = agent.device
    ref = coordinator.publish(agent_bundles.make())
    coordinator.desire(device, ref)
    (receipt,) = agent.wait(lambda: coordinator.receipts(agent.certificate))
    assert (receipt.outcome, receipt.bundle, receipt.rollout, receipt.device) == ("activated", ref, "r1", device)
    for index in range(3):
        x, y = agent_models.samples(40, seed=index)
        agent.feed(f"{index:03d}", x, y)
    agent.wait(lambda: coordinator.samples() >= 120)
    windows = coordinator.bodies(messages.ProfileWindow)
    assert [window.counts.samples for window in windows] == [50, 50, 20]
    assert {window.bundle_sha256 for window in windows} == {ref.sha256}
    agent.wait(lambda: coordinator.hellos[-1].samples == 120)
    assert coordinator.hellos[-1].bundles == [ref]
    status = read(agent.folder.root)
    assert status.running
    assert status.connected
    assert (status.inferences, status.models[ref.model].bundle) == (120, ref)
    agent.wait(lambda: read(agent.folder.root).pending_reports == 0)
    command = [sys.executable, "-m", "edge_agent", "run", "--state", str(agent.folder.root)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (second.returncode, second.stdout) == (1, "")
    assert "another agent runs in this folder" in second.stderr


def activate(coordinator: Coordinator, agent: AgentProcess, bundle: bytes) -> messages.BundleRef:
    """Bring a good bundle onto the device."""
    before = len(coordinator.receipts(agent.certificate))
    ref = coordinator.publish(bundle)
    coordinator.desire(agent.device, ref)
    receipts = agent.wait(lambda: coordinator.receipts(agent.certificate)[before:])
    assert [receipt.outcome for receipt in receipts] == ["activated"]
    return ref


def refusal(coordinator: Coordinator, agent: AgentProcess, ref: messages.BundleRef) -> str:
    """Wish for a bundle that must be refused; the reason, after checking that the old one serves on."""
    old = read(agent.folder.root).models
    before = len(coordinator.receipts(agent.certificate))
    samples = coordinator.samples()
    coordinator.desire(agent.device, ref, rollout="bad")
    (receipt,) = agent.wait(lambda: coordinator.receipts(agent.certificate)[before:])
    assert (receipt.outcome, receipt.bundle, receipt.rollout) == ("refused", ref, "bad")
    agent.feed(f"after-{before}", *agent_models.samples(10, seed=before))
    agent.wait(lambda: coordinator.samples() == samples + 10)
    status = read(agent.folder.root)
    assert status.models == old
    assert receipt.reason in status.last_refusal
    refused = [event for event in agent.events() if event["event"] == "refused"]
    assert (refused[-1]["reason"], refused[-1]["bundle"]["sha256"]) == (receipt.reason, ref.sha256)
    return receipt.reason


def test_a_bundle_that_must_not_serve_is_refused_with_a_reason_and_the_old_slot_serves_on(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    activate(coordinator, agent, agent_bundles.make())
    good = agent_bundles.make(version=2)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    reason = refusal(coordinator, agent, coordinator.publish(good, content=bytes(flipped)))
    assert "SHA-256" in reason
    reason = refusal(coordinator, agent, coordinator.publish(agent_bundles.make(version=3, golden_shift=5.0)))
    assert reason.startswith("golden vectors: an output differs by 5")
    reason = refusal(coordinator, agent, coordinator.publish(agent_bundles.make(version=4, hardware_classes=["tpu"])))
    assert reason == "the bundle is for tpu; this is generic"
    reason = refusal(coordinator, agent, coordinator.publish(agent_bundles.make(version=5, min_agent_version="99.0")))
    assert "needs agent 99.0" in reason
    forged = agent_bundles.make(version=6)
    coordinator.blobs[agent_bundles.ref(forged).sha256] = forged
    reason = refusal(coordinator, agent, agent_bundles.ref(forged))
    assert "names no target" in reason
    last = activate(coordinator, agent, agent_bundles.make(version=7, variant="int8"))
    assert read(agent.folder.root).models[last.model].bundle == last


def test_two_models_come_serve_and_go_each_for_itself(coordinator: Coordinator, agent: AgentProcess) -> None:
    first = activate(coordinator, agent, agent_bundles.make())
    agent.feed("000", *agent_models.samples(50, seed=0))
    agent.wait(lambda: coordinator.samples() == 50)
    second = activate(coordinator, agent, agent_bundles.make(model="fourths"))
    agent.wait(lambda: coordinator.hellos[-1].bundles == [second, first])
    agent.feed("001", *agent_models.samples(50, seed=1))  # nobody says whose input this is
    coordinator.remove(agent.device, first.model)
    agent.wait(lambda: coordinator.hellos[-1].bundles == [second])
    agent.wait(lambda: coordinator.samples() == 100)  # only one is left
    assert [window.bundle_sha256 for window in coordinator.bodies(messages.ProfileWindow)] == [
        first.sha256,
        second.sha256,
    ]
    assert not (agent.folder.slots / first.model).exists()
    assert list(read(agent.folder.root).models) == [second.model]


def test_metadata_signed_with_the_wrong_key_is_refused(coordinator: Coordinator, agent: AgentProcess) -> None:
    activate(coordinator, agent, agent_bundles.make())
    thief = agent_bundles.make(version=2)
    ref = coordinator.publish(thief)
    signed = coordinator.repository
    signed.put("bundles", repository.renew_bundles(signed.newest("bundles"), signed.keys["timestamp"][0], signed.now))
    signed.publish()
    assert "UnsignedMetadataError" in refusal(coordinator, agent, ref)


def test_a_round_trains_on_the_device_and_its_update_comes_back_whole(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    ref = activate(coordinator, agent, agent_bundles.make())
    x, y = agent_models.samples(60, seed=3)
    agent.feed("000", x, y)
    agent.wait(lambda: coordinator.samples() == 60)
    start = {name: np.zeros_like(array) for name, array in agent_models.weights().items()}
    coordinator.instruct(agent.device, ref.sha256, start, epochs=5, learning_rate=0.5, momentum=0.5, seed=7)
    (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply))
    assert (reply.error, reply.examples) == ("", 60)
    assert reply.metrics["accuracy"] > 0.9
    blocks = coordinator.bodies(messages.UploadBlock)
    update = tensors.load(b"".join(block.data for block in blocks))
    expected = _train_here(agent_bundles.make(), start, x, y)
    for name, array in expected.items():
        np.testing.assert_allclose(update[name], array, atol=1e-6)
    coordinator.instruct(agent.device, ref.sha256, update, kind="evaluate", id="evaluation")
    (_, evaluation) = agent.wait(
        lambda: coordinator.bodies(messages.RoundReply)[1:] and coordinator.bodies(messages.RoundReply)
    )
    assert evaluation.error == ""
    assert evaluation.metrics["accuracy"] > 0.9
    assert evaluation.counts.samples == 60
    coordinator.instruct(agent.device, "0" * 64, start, id="foreign")
    (foreign,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply)[2:])
    assert "the instruction is for 000000000000" in foreign.error
    agent.wait(lambda: [event for event in agent.events() if event["event"] == "round"][2:])
    told = agent.events()
    assert [event["event"] for event in told if event["event"] != "window"] == [
        "started", "connected", "activated", "round", "round", "round",
    ]  # fmt: skip
    assert (told[0]["device"], told[0]["bundles"]) == (agent.device, [])
    assert sum(event["samples"] for event in told if event["event"] == "window") == 60
    rounds = [event for event in told if event["event"] == "round"]
    assert [event["kind"] for event in rounds] == ["train", "evaluate", "train"]
    assert [bool(event["error"]) for event in rounds] == [False, False, True]
    coordinator.instruct(agent.device, ref.sha256, start, id="late", expires_at=1.0)
    (late,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply)[3:])
    assert late.error == "the instruction has expired"


def _train_here(bundle: bytes, start: tensors.Arrays, x: np.ndarray, y: np.ndarray) -> tensors.Arrays:
    parts: Bundle = unpack(bundle)
    runtime = training.TrainingRuntime(parts.files["training"], agent_models.SPEC)
    values = parts.transform.apply(x)
    return training.train(runtime, start, values, y, epochs=5, learning_rate=0.5, momentum=0.5, seed=7).weights
