"""The whole demonstration: wall time and memory of all its processes together.

Memory is the sum of proportional set sizes (shared pages counted once), sampled twice a second.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.results import Row, arguments, show

GOAL_S = 180.0
GOAL_MIB = 4096.0


def tree_mib(root: psutil.Process) -> float:
    """Proportional set size of a process and all that it started, in MiB."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it has just ended
            continue
    return total / 2**20


def measure(folder: Path, broker: str) -> list[Row]:
    """Run one demonstration."""
    command = [sys.executable, "-m", "fieldfare", "demo", "--broker", broker]
    begun, peak = time.monotonic(), 0.0
    with (folder / "output.txt").open("wb") as output:
        running = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        root = psutil.Process(running.pid)
        while running.poll() is None:
            peak = max(peak, tree_mib(root))
            time.sleep(0.5)
    if running.returncode:
        raise SystemExit((folder / "output.txt").read_text())
    seconds = time.monotonic() - begun
    return [
        Row(f"demo, {broker} broker, {os.cpu_count()} cores", "s", seconds, goal=GOAL_S),
        Row(f"demo, {broker} broker, all processes, peak", "MiB", peak, goal=GOAL_MIB),
    ]


def main() -> int:
    options = arguments(__doc__)
    rows = []
    for broker in ("embedded",) if options.quick else ("embedded", "mosquitto"):
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(Path(folder), broker)
    return show(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
