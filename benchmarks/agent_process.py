"""The agent as a process: memory, processor time, a compressed week, and how fast an update arrives.

Everything is real: `edge-agent run`, Mosquitto with mutual TLS, signed metadata; the coordinator is the one of the
agent's integration tests, in this process. Sizes are MB of 10^6 bytes. Beside it, idle: Flower's device side.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks import dense_models
from benchmarks.results import Row, arguments, show
from contract import tensors
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess, eventually, free_port

FEATURES = 64
LARGE, SMALL = (512, 232, 4), (256, 92, 4)  # layers of a float model of 600 KB, and of 160 KiB
OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
SETTINGS = {"hello_s": 10.0, "poll_s": 0.2, "retry_s": 10.0, "window_idle_s": 2.0, "window_samples": 3000}
PER_FILE = 2000  # samples
WEEK = 7 * 24 * 3600 * 10  # inferences at 10 Hz


def memory_mb(pid: int, line: str) -> float:
    """A line of `/proc/PID/status` (`VmRSS`, `VmHWM`), in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 / 1e6 for text in lines if text.startswith(f"{line}:"))


@contextmanager
def site(folder: Path, units: tuple[int, ...], **settings: object) -> Iterator[tuple[Coordinator, AgentProcess]]:
    """A running agent that serves version 1 of a model with these layers."""
    broker = BrokerProcess(folder / "broker", "mosquitto")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, folder / "agent", "bench", **{**SETTINGS, **settings})
    bundle = dense_models.pack(dense_models.make(folder, FEATURES, units), FEATURES)
    try:
        agent.start()
        offer(coordinator, agent, bundle)
        yield coordinator, agent
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()


def offer(coordinator: Coordinator, agent: AgentProcess, bundle: bytes) -> float:
    """Roll a bundle out; seconds from the offer until its signed receipt is here."""
    ref = coordinator.publish(bundle)
    started = time.monotonic()
    coordinator.desire(agent.device, ref)
    agent.wait(lambda: any(receipt.bundle == ref for receipt in coordinator.receipts(agent.certificate)), 240)
    seconds = time.monotonic() - started
    outcomes = [receipt.outcome for receipt in coordinator.receipts(agent.certificate) if receipt.bundle == ref]
    assert outcomes[0] == "activated", outcomes
    return seconds


def memory(*, quick: bool) -> list[Row]:
    """Resident memory before and after a compressed week, idle time, and Flower's SuperNode beside it."""
    with tempfile.TemporaryDirectory() as name:
        peer = supernode(Path(name))
    with tempfile.TemporaryDirectory() as name, site(Path(name), LARGE) as (coordinator, agent):
        pid = agent.process.pid
        share = idle(pid, 20.0 if quick else 60.0)
        fed = feed(coordinator, agent, WEEK // 500, done=0)
        start = memory_mb(pid, "VmRSS")
        fed = feed(coordinator, agent, WEEK // 50 if quick else WEEK, done=fed)
        end, peak = memory_mb(pid, "VmRSS"), memory_mb(pid, "VmHWM")
    days = "a compressed week" if not quick else "3 compressed hours"
    return [
        Row("resident memory: TLS, MQTT, a 600 KB model, a profile of 64 features", "MB", max(start, end), goal=60),
        Row("its peak", "MB", peak),
        Row(f"growth over {days} of inference at 10 Hz ({fed:,} inferences)", "MB", end - start, goal=1),
        Row("idle processor time, one heartbeat in 10 s", "% of a core", share, goal=0.3),
        Row("idle beside Flower's SuperNode (a quarter of its memory is the goal)", "MB", start, peer, peer / 4),
    ]


def feed(coordinator: Coordinator, agent: AgentProcess, count: int, *, done: int) -> int:
    """Give the agent `count` samples in files, as fast as it takes them; every one must arrive in a profile window."""
    content = tensors.dump({"x": dense_models.samples(PER_FILE, FEATURES)})
    total = done + count // PER_FILE * PER_FILE
    for start in range(done, total, PER_FILE):
        if start // PER_FILE % 20 == 0:
            agent.wait(lambda: make_room(coordinator, agent) < 40, 120)
        beside = agent.source / f".{start}"
        beside.write_bytes(content)
        beside.rename(agent.source / f"{start:010d}.safetensors")
    agent.wait(lambda: coordinator.samples() >= total, 300)
    assert coordinator.samples() == total, (coordinator.samples(), total)
    return total


def make_room(coordinator: Coordinator, agent: AgentProcess) -> int:
    """Remove files whose counts have arrived, as a camera's owner would; how many are left."""
    counted = coordinator.samples()
    files = sorted(agent.source.glob("*.safetensors"))
    left = [file for file in files if int(file.stem) + PER_FILE > counted]
    for file in files[: len(files) - len(left)]:
        file.unlink()
    time.sleep(0.1)
    return len(left)


def idle(pid: int, seconds: float) -> float:
    """Percent of a core that a process takes while nothing happens."""
    process = psutil.Process(pid)
    time.sleep(5)
    before, started = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return 100 * spent / (time.monotonic() - started)


def update(*, quick: bool) -> list[Row]:
    """A new 160 KiB model on loopback: from the offer to the signed receipt, in the coordinator's hand."""
    with tempfile.TemporaryDirectory() as name, site(Path(name), SMALL) as (coordinator, agent):
        model = dense_models.make(Path(name), FEATURES, SMALL)
        times = [
            offer(coordinator, agent, dense_models.pack(model, FEATURES, version=2 + turn))
            for turn in range(2 if quick else 7)
        ]
    return [
        Row(
            "update of a 160 KiB model on loopback, offer to receipt (median)",
            "s",
            sorted(times)[len(times) // 2],
            goal=1,
        )
    ]


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


def supernode(folder: Path) -> float:
    """Resident memory of an idle SuperNode with its SuperExec, in MB, summed over its processes."""
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
            return sum(memory_mb(one.pid, "VmRSS") for one in (process, *process.children(recursive=True)))


def _listens(port: int) -> bool:
    return any(
        connection.laddr.port == port for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"
    )


def _wait(condition: Callable[[], object], log: Path) -> None:
    if not eventually(condition, 60):
        raise SystemExit(f"the peer did not start:\n{log.read_text()}")


def main() -> int:
    options = arguments(__doc__)
    return show([*update(quick=options.quick), *memory(quick=options.quick)], options.json)


if __name__ == "__main__":
    sys.exit(main())
