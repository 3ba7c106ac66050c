"""Peak memory of a device: our agent, and beside it Flower's own device side, `flower-supernode`.

Ours: a real agent process over Mosquitto with TLS pulls and activates the digits bundle, infers, and trains one
round. The daemon's peak has a goal; its short-lived children (who checks signatures, who trains, who signs) are told
beside it. The peer's processes are connected to a loopback SuperLink and idle: no app, no model. A process's peak is
`VmHWM`, in MB of 10^6 bytes. Both run in turn, twice; ours is the worst run, the peer's the best.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from sklearn.datasets import load_digits

from benchmarks.results import Row, arguments, show
from contract import messages, tensors
from contract.bundle import unpack
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess, eventually, free_port

BUNDLE = Path(__file__).parents[1] / "tests" / "data" / "digits" / "bundle.zip"
GOAL_MB = 64.0
CHILDREN = ("edge_agent.trust", "edge_agent.trainer", "edge_agent.signing")
OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def peak_mb(pid: int) -> float:
    """The most memory that a process ever held; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), 0.0)


class Watch(threading.Thread):
    """Follows the children of a process, by the module that each runs.

    Attributes:
        peaks: MB by module, the largest of all its children.
    """

    def __init__(self, pid: int) -> None:
        super().__init__()
        self.peaks = dict.fromkeys(CHILDREN, 0.0)
        self._pid, self._ended = pid, threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.005):
            for child in Path(f"/proc/{self._pid}/task").glob("*/children"):
                for pid in _words(child):
                    for name in set(_words(Path(f"/proc/{pid}/cmdline"), "\0")).intersection(CHILDREN):
                        self.peaks[name] = max(self.peaks[name], peak_mb(int(pid)))

    def end(self) -> None:
        self._ended.set()
        self.join()


def _words(path: Path, separator: str | None = None) -> list[str]:
    try:
        return path.read_text().split(separator)
    except OSError:  # it has just ended
        return []


def ours(folder: Path, *, files: int) -> dict[str, float]:
    """Peaks of the agent's daemon and of its children, in MB by name."""
    broker = BrokerProcess(folder / "broker", "mosquitto")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, folder / "agent", "bench", window_samples=200)
    digits = load_digits()
    x, y = digits.images.astype(np.uint8)[..., None], digits.target
    bundle = BUNDLE.read_bytes()
    try:
        agent.start()
        assert agent.process is not None
        watch = Watch(agent.process.pid)
        watch.start()
        ref = coordinator.publish(bundle)
        coordinator.desire(agent.device, ref)
        agent.wait(lambda: [receipt.outcome for receipt in coordinator.receipts(agent.certificate)] == ["activated"])
        for index in range(files):
            agent.feed(f"{index:04d}", x[:200], y[:200])
        agent.wait(lambda: coordinator.samples() == 200 * files, 120)
        coordinator.instruct(agent.device, ref.sha256, tensors.load(unpack(bundle).files["weights"]))
        (reply,) = agent.wait(lambda: coordinator.bodies(messages.RoundReply))
        assert not reply.error, reply.error
        watch.end()
        return {"daemon": peak_mb(agent.process.pid), **watch.peaks}
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()


@contextmanager
def _started(command: list[str], folder: Path, log: Path) -> Iterator[psutil.Process]:
    """A program and all that it starts, ended together."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"  # it starts its own kind
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **OFFLINE, "FLWR_HOME": str(folder), "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield psutil.Process(process.pid)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):  # what did not end by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def peer(folder: Path) -> float:
    """Peak of an idle SuperNode with its SuperExec, in MB, summed over the processes."""
    programs = Path(sys.executable).parent
    link_port, node_port = free_port(), free_port()
    link = [str(programs / "flower-superlink"), "--insecure", "--port", str(link_port), "--isolation", "process"]
    link += ["--disable-runtime-dependency-installation"]
    node = [str(programs / "flower-supernode"), "--insecure", "--superlink", f"127.0.0.1:{link_port}"]
    node += ["--port", str(node_port)]
    with _started(link, folder, folder / "superlink.log") as _:
        _wait(lambda: _listens(link_port), folder / "superlink.log")
        with _started(node, folder, folder / "supernode.log") as process:
            _wait(lambda: process.children(recursive=True) and _listens(node_port), folder / "supernode.log")
            time.sleep(8)  # all that it imports, and the first heartbeats
            return sum(peak_mb(one.pid) for one in (process, *process.children(recursive=True)))


def _listens(port: int) -> bool:
    return any(
        connection.laddr.port == port for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"
    )


def _wait(condition: Callable[[], object], log: Path) -> None:
    if not eventually(condition, 60):
        raise SystemExit(f"the peer did not start:\n{log.read_text()}")


def measure(*, turns: int, files: int) -> list[Row]:
    """Ours and the peer in turn."""
    agents, peers = [], []
    for _ in range(turns):
        with tempfile.TemporaryDirectory() as folder:
            agents.append(ours(Path(folder), files=files))
        with tempfile.TemporaryDirectory() as folder:
            peers.append(peer(Path(folder)))
    worst = {name: max(run[name] for run in agents) for name in agents[0]}
    return [
        Row("agent's daemon: model, TLS, MQTT, inference, a round", "MB", worst.pop("daemon"), min(peers), GOAL_MB),
        *(Row(f"its child {name}", "MB", mb) for name, mb in worst.items()),
    ]


def main() -> int:
    options = arguments(__doc__)
    return show(measure(turns=1 if options.quick else 2, files=5 if options.quick else 50), options.json)


if __name__ == "__main__":
    sys.exit(main())
