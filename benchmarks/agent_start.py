"""Cold start: from the `exec` of `edge-agent run` to the first answer to an app, over the agent's Unix socket.

The agent is a real one that was enrolled and has activated a bundle before: keys, signed metadata and broker are
there. The app asks again and again until it is answered; the files of Python and the libraries are in the page cache.
"""

import statistics
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from benchmarks import agent_inference, inference_models
from benchmarks.results import Row
from edge_agent.client import Client, ClientError
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

GOAL_S, PATIENCE_S = 1.0, 60.0


def first_answer(agent: AgentProcess, sample: np.ndarray) -> float:
    """Start the agent; seconds until an inference came back."""
    began = time.monotonic()
    agent.start()
    while time.monotonic() - began < PATIENCE_S:
        with suppress(ClientError), Client(socket=agent.folder.root / "api.sock", retries=0) as client:
            client.infer("bench", sample[None])
            return time.monotonic() - began
        time.sleep(0.005)
    raise SystemExit(f"the agent did not answer:\n{agent.log.read_text()}")


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """The median of several starts."""
    inference_models.make(folder)
    broker = BrokerProcess(folder / "broker", "mosquitto")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, folder / "agent", "bench")
    bundle, raw = agent_inference.images_bundle(folder)
    try:
        agent.start()
        coordinator.desire(agent.device, coordinator.publish(bundle))
        agent.wait(lambda: coordinator.receipts(agent.certificate), 120)
        agent.stop()
        times = []
        for _ in range(3 if quick else 11):
            times.append(first_answer(agent, raw[0]))
            agent.stop()
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()
    return [
        Row("cold start to the first inference over the local API (median)", "s", statistics.median(times), goal=GOAL_S)
    ]
