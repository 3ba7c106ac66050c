"""Peak memory of the agent with a model, TLS and MQTT: `python -m benchmarks.agent_memory [--quick] [--json]`.

A real agent process enrols by hand at a real Mosquitto, pulls and activates a bundle, infers, and does a round.
`VmHWM` is the peak of resident memory that the kernel saw. Exit status 0 only if the daemon stays within 64 MB.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from contract import messages
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_coordinator import AgentProcess, Coordinator
from tests.fakes.broker_process import BrokerProcess

LIMIT_MB = 64.0


def status_mb(pid: int, key: str) -> float:
    """A memory figure of /proc/PID/status, in MB of 10^6 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise KeyError(key)


def measure(folder: Path, *, files: int) -> list[tuple[str, float, float]]:
    """Stations of an agent's life: name, resident memory then, peak so far; in MB."""
    broker = BrokerProcess(folder / "broker", "mosquitto")
    coordinator = Coordinator(broker)
    agent = AgentProcess(coordinator, folder / "agent", "bench", window_samples=200)
    rows = []

    def note(name: str) -> None:
        time.sleep(0.3)
        rows.append((name, status_mb(agent.process.pid, "VmRSS"), status_mb(agent.process.pid, "VmHWM")))

    try:
        agent.start()
        agent.wait(lambda: coordinator.hellos)
        note("connected over TLS")
        for version in (1, 2):
            ref = coordinator.publish(agent_bundles.make(version=version, variant="int8"))
            coordinator.desire(agent.device, ref)
            agent.wait(lambda v=version: len(coordinator.receipts(agent.certificate)) == v)
            note(f"bundle {version} active")
        for index in range(files):
            agent.feed(f"{index:04d}", *agent_models.samples(200, seed=index))
        agent.wait(lambda: coordinator.samples() == 200 * files, 120)
        note(f"{200 * files} inferences")
        coordinator.instruct(agent.device, ref.sha256, agent_models.weights())
        agent.wait(lambda: coordinator.bodies(messages.RoundReply))
        note("one round trained")
    finally:
        agent.stop()
        coordinator.stop()
        broker.stop()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer inferences")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Path(folder), files=5 if options.quick else 100)
    peak = max(row[2] for row in rows)
    if options.json:
        stations = [{"station": name, "rss_mb": rss, "peak_mb": high} for name, rss, high in rows]
        print(json.dumps({"stations": stations, "peak_mb": peak, "limit_mb": LIMIT_MB, "holds": peak <= LIMIT_MB}))
    else:
        for name, rss, high in rows:
            print(f"{name:24s} {rss:6.1f} MB   peak {high:6.1f} MB")
        print(f"{'peak' if peak <= LIMIT_MB else 'TOO MUCH: peak'} {peak:.1f} MB, limit {LIMIT_MB:.0f} MB")
    return 0 if peak <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main())
