"""Memory and processor time of the agent: at rest, over a compressed week, and beside Flower's device side at rest.

What is told is resident memory, 15 seconds after the last activation; the week is at 10 Hz, in sample files as fast as
the agent takes them, and every inference must arrive in a profile window.
"""

import tempfile
import time
from pathlib import Path

import psutil

from benchmarks import dense_models, supernode
from benchmarks.agent_site import FEATURES, LARGE, site
from benchmarks.results import Row
from contract import tensors
from tests.fakes.agent_coordinator import AgentProcess, Coordinator

PER_FILE = 2000  # samples
WEEK = 7 * 24 * 3600 * 10  # inferences at 10 Hz
SETTLED_S = 15.0


def memory_mb(pid: int, line: str) -> float:
    """A line of `/proc/PID/status` (`VmRSS`, `VmHWM`), in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(text.split()[1]) * 1024 / 1e6 for text in lines if text.startswith(f"{line}:"))


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Ours and the peer, one after the other."""
    with tempfile.TemporaryDirectory() as name:
        peer = supernode.idle_mb(Path(name))
    with site(folder / "memory", LARGE) as (coordinator, agent):
        pid = agent.process.pid
        time.sleep(SETTLED_S)
        rest = memory_mb(pid, "VmRSS")
        share = idle_percent(pid, 20.0 if quick else 60.0)
        done = feed(coordinator, agent, WEEK // 100, done=0)
        start = memory_mb(pid, "VmRSS")
        done = feed(coordinator, agent, WEEK // 20 if quick else WEEK, done=done)
        end, peak = memory_mb(pid, "VmRSS"), memory_mb(pid, "VmHWM")
    span = "8 compressed hours" if quick else "a compressed week"
    return [
        Row(
            "resident memory: TLS, MQTT, a 600 KB model, a profile of 64 features", "MB", max(rest, start, end), goal=60
        ),
        Row("  most that it ever was, while an update or start-up goes on", "MB", peak),
        Row(f"  growth over {span} at 10 Hz ({done:,} inferences, all counted)", "MB", end - start, goal=1),
        Row("  at rest, a quarter of Flower's SuperNode at rest or less", "MB", rest, peer, peer / 4),
        Row("processor time at rest, one heartbeat in 10 s", "% of a core", share, goal=0.3),
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


def idle_percent(pid: int, seconds: float) -> float:
    """Percent of a core that a process takes while nothing happens."""
    process = psutil.Process(pid)
    time.sleep(5)
    before, started = process.cpu_times(), time.monotonic()
    time.sleep(seconds)
    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return 100 * spent / (time.monotonic() - started)
