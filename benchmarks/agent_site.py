"""A running agent for the benchmarks: a real process over Mosquitto with mutual TLS and signed metadata.

The coordinator is the one of the agent's integration tests, in this process. Sizes are MB of 10^6 bytes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import dense_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

FEATURES = 64
LARGE, SMALL = (512, 232, 4), (256, 92, 4)  # layers of a float model of 600 KB, and of 160 KiB
SETTINGS = {"hello_s": 10.0, "poll_s": 0.2, "retry_s": 10.0, "window_idle_s": 2.0, "window_samples": 3000}


def bundle(folder: Path, units: tuple[int, ...], version: int) -> bytes:
    """A version of a model with these layers; each version has weights of its own."""
    return dense_models.pack(dense_models.make(folder, FEATURES, units, seed=version), FEATURES, version=version)


@contextmanager
def site(
    folder: Path, units: tuple[int, ...], *, through: Callable[[int], int] = int, **settings: object
) -> Iterator[tuple[Coordinator, AgentProcess]]:
    """A running agent that serves version 1 of a model with these layers.

    `through` gives the port at which the agent finds the broker on the port that it is given; `settings` are keys of
    `agent.toml`.
    """
    broker = BrokerProcess(folder / "broker", "mosquitto")
    coordinator = Coordinator(broker)
    settings = {**SETTINGS, "broker_port": through(broker.port), **settings}
    agent = AgentProcess(coordinator, folder / "agent", "bench", **settings)
    try:
        agent.start()
        offer(coordinator, agent, bundle(folder.parent, units, 1))
        yield coordinator, agent
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()


def offer(coordinator: Coordinator, agent: AgentProcess, content: bytes) -> float:
    """Roll a bundle out; seconds from the offer until its signed receipt is here."""
    ref = coordinator.publish(content)
    started = time.monotonic()
    coordinator.desire(agent.device, ref)
    agent.wait(lambda: any(receipt.bundle == ref for receipt in coordinator.receipts(agent.certificate)), 240)
    seconds = time.monotonic() - started
    outcomes = [receipt.outcome for receipt in coordinator.receipts(agent.certificate) if receipt.bundle == ref]
    assert outcomes[0] == "activated", outcomes
    return seconds
