"""Apps beside a real agent: what they infer is counted for the fleet, and a rollout does not disturb them."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import messages
from edge_agent.client import Client
from edge_agent.config import Source
from edge_agent.status import read
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    broker = BrokerProcess(tmp_path / "broker", "mosquitto")
    running = Coordinator(broker)
    yield running
    running.stop()
    broker.stop()


@pytest.fixture
def agent(coordinator: Coordinator, tmp_path: Path) -> Iterator[AgentProcess]:
    running = AgentProcess(coordinator, tmp_path / "agent", "meter-api")
    running.start()
    yield running
    assert running.stop() == 0, running.log.read_text()
    assert "Traceback" not in running.log.read_text()


def test_apps_infer_across_rollouts_and_a_kill_and_every_inference_is_counted_once(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    socket = agent.folder.root / "api.sock"
    x, _ = agent_models.samples(5, seed=0)
    with Client(socket=socket) as client:
        agent.wait(lambda: client._once("GET", "/v2/health/live", b"", {})[0] == 200 if socket.exists() else None)
        assert not client.ready()
        refs = [coordinator.publish(agent_bundles.make(version=n, temperature=float(n))) for n in range(1, 4)]
        coordinator.desire(agent.device, refs[0])
        agent.wait(client.ready)
        done, made, failures = threading.Event(), [0], []

        def app() -> None:
            try:
                with Client(socket=socket, retries=0, timeout_s=60) as own:
                    while not done.is_set():
                        made[0] += len(own.infer("thirds", x).labels)
            except Exception as error:  # noqa: BLE001  # shown below
                failures.append(error)

        thread = threading.Thread(target=app)
        thread.start()
        for ref in refs[1:]:
            coordinator.desire(agent.device, ref)
            agent.wait(lambda ref=ref: client.infer("thirds", x[:1]).version == str(ref.version) or failures)
        done.set()
        thread.join(60)
        assert not failures
        digests = {ref.sha256 for ref in refs}
        agent.wait(lambda: {window.bundle_sha256 for window in coordinator.bodies(messages.ProfileWindow)} == digests)
        agent.wait(lambda: coordinator.samples() == read(agent.folder.root).inferences >= made[0])
        agent.kill()
        assert not client.ready()
        agent.start()
        agent.wait(client.ready)
        assert client.infer("thirds", x[:1]).version == "3"
        before = coordinator.samples()
    assert agent.stop() == 0
    assert not socket.exists()
    agent.start()
    agent.wait(lambda: coordinator.samples() == before + 1)


def test_samples_that_apps_hand_in_train_the_model_here_and_no_message_holds_a_byte_of_them(
    coordinator: Coordinator, agent: AgentProcess
) -> None:
    sent: list[bytes] = []
    listen = coordinator.client._client.on_message

    def overhear(client: Any, data: Any, message: Any) -> None:
        sent.append(message.payload)
        listen(client, data, message)

    coordinator.client._client.on_message = overhear
    socket = agent.folder.root / "api.sock"
    ref = coordinator.publish(agent_bundles.make())
    coordinator.desire(agent.device, ref)
    x, y = agent_models.samples(80, seed=5)
    with Client(socket=socket) as client:
        agent.wait(lambda: client.ready("thirds"))
        for start in range(0, 80, 20):
            assert client.add_samples("thirds", x[start : start + 20], y[start : start + 20]) == 20
    assert coordinator.samples() == 0
    agent.wait(lambda: coordinator.hellos[-1].samples == 80)
    agent.kill()
    agent.start()
    agent.wait(lambda: coordinator.hellos[-1].samples == 80)
    start = {name: np.zeros_like(array) for name, array in agent_models.weights().items()}
    coordinator.instruct(agent.device, ref.sha256, start, epochs=5, learning_rate=0.5)
    (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply))
    assert (reply.error, reply.examples) == ("", 80)
    assert reply.metrics["accuracy"] > 0.9
    agent.wait(lambda: read(agent.folder.root).pending_reports == 0)
    everything = b"".join(sent)
    assert len(sent) > 5
    for image in x:
        for content in (image.tobytes(), (image / np.float32(16)).astype(np.float32).tobytes()):
            assert content not in everything
    state = b"".join(path.read_bytes() for path in agent.folder.root.rglob("*") if path.is_file())
    assert not [image for image in x if image.tobytes() in state]


def test_sources_of_agent_toml_feed_the_model_and_a_replay_is_counted_once_across_kills(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    x, y = agent_models.samples(90, seed=3)
    rows = "".join(
        ",".join(map(str, [*image.ravel().tolist(), label])) + "\n" for image, label in zip(x, y, strict=True)
    )
    (tmp_path / "f.csv").write_text(",".join([*(f"p{i}" for i in range(16)), "label"]) + "\n" + rows)
    replay = {"path": str(tmp_path / "f.csv"), "label": "label", "rate_per_s": 40.0, "batch": 5}
    camera = {"command": ["sleep", "1000"], "format": "raw", "dtype": "uint8", "framing": "fixed", "frame_bytes": 16}
    sources = [
        Source(kind="csv", options=replay),
        Source(kind="command", options=camera),
        Source(kind="http", options={"name": "gate", "format": "raw", "dtype": "uint8"}),
        Source(kind="csv", options={"path": str(tmp_path / "none.csv")}),
    ]
    agent = AgentProcess(coordinator, tmp_path / "agent", "meter-sources", sources=sources)
    agent.start()
    coordinator.desire(agent.device, coordinator.publish(agent_bundles.make()))
    for seen in (10, 40):
        agent.wait(lambda seen=seen: coordinator.samples() >= seen)
        agent.kill()
        agent.start()
    agent.wait(lambda: [event for event in agent.events() if event.get("what") == "ended"])
    agent.wait(lambda: coordinator.samples() == 90)
    agent.wait(lambda: coordinator.hellos[-1].samples >= 90)  # kept for training, too
    with Client(socket=agent.folder.root / "api.sock") as app:
        agent.wait(lambda: app._once("POST", "/v2/sources/gate", x[:2].tobytes(), {})[0] == 202)
        agent.wait(lambda: coordinator.samples() == 92)
    assert [event for event in agent.events() if event["event"] == "source" and "none.csv" in event["reason"]]
    assert agent.stop() == 0, agent.log.read_text()
    assert "Traceback" not in agent.log.read_text()
