"""Over a link that the kernel shapes (`tc tbf` between two network namespaces), the agent as a process of its own."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import agent_bundles
from tests.fakes.broker_process import free_port
from tests.links import relay as links
from tests.links.relay import Relay
from tests.links.site import AgentProcess, Cloud, all_arrived_once, wait

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto]

NEAR, FAR = "10.77.83.2", "10.77.83.1"


@dataclass(frozen=True)
class Namespace:
    """The device's end of the link."""

    name: str

    @property
    def enter(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace at the end of a pair of interfaces that carry 100 kbit/s each way."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
        pytest.skip("needs root, and the programs ip and tc (make services)")
    name, ours, theirs = f"ff-{os.getpid()}", f"ffa{os.getpid() % 100_000}", f"ffb{os.getpid() % 100_000}"
    inside = f"ip netns exec {name} "
    shape = "root tbf rate 100kbit burst 4kb latency 1s"
    commands = [
        f"ip netns add {name}",
        f"ip link add {ours} type veth peer name {theirs}",
        f"ip link set {theirs} netns {name}",
        f"ip addr add {FAR}/30 dev {ours}",
        f"ip link set {ours} up",
        f"{inside}ip addr add {NEAR}/30 dev {theirs}",
        f"{inside}ip link set {theirs} up",
        f"{inside}ip link set lo up",
        f"tc qdisc add dev {ours} {shape}",
        f"{inside}tc qdisc add dev {theirs} {shape}",
    ]
    try:
        for command in commands:
            done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"this kernel or container does not let us shape a link: {command}: {done.stderr.strip()}")
        yield Namespace(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)  # its interface goes with it


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path / "cloud")
    yield made
    made.close()


def test_over_2g_shaped_by_the_kernel_a_bundle_comes_and_everything_is_told_once(
    cloud: Cloud, tmp_path: Path, namespace: Namespace
) -> None:
    far = Relay(("127.0.0.1", cloud.broker.port), links.Shape(delay_s=links.GPRS.delay_s), host=FAR)
    port = free_port()
    command = ["-m", "tests.links.relay", "--listen", f"127.0.0.1:{port}", "--to", f"{FAR}:{far.port}"]
    root = Path(__file__).parents[2]
    near = subprocess.Popen([*namespace.enter, sys.executable, *command], cwd=root)
    agent = AgentProcess(cloud, tmp_path / "agent", port)
    cloud.offer(agent_bundles.make(training=None))
    began = time.monotonic()
    agent.start(*namespace.enter)
    try:
        wait(lambda: cloud.outcomes() == ["activated"], agent.log.read_text)
        agent.feed(8)
        assert all_arrived_once(cloud, agent, samples=400, outcomes=["activated"]) == 41
        fastest_s = max(far.carried) / links.GPRS.bytes_per_s
        assert time.monotonic() - began > 0.9 * fastest_s  # the kernel did shape it
    finally:
        agent.stop()
        near.terminate()
        near.wait(10)
        far.close()
    assert "Traceback" not in agent.log.read_text()
