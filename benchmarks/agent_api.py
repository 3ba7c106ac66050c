"""What an app waits for: round trips of `edge_agent.client` in a process of its own to the local API's Unix socket.

The model is the smallest there is, so that what is told is the way to it and back: HTTP, protocol, transform, and the
count for the profile. One connection is kept; each number is the median of single requests. There is no goal.
"""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.results import Row
from edge_agent.serving import Serving
from tests.fakes import agent_bundles
from tests.fakes.agent_api import model, served

APP = """
import json, statistics, sys, time
import numpy as np
from edge_agent.client import Client

socket, count = sys.argv[1], int(sys.argv[2])
x = np.random.default_rng(0).integers(0, 16, (256, 4, 4, 1), dtype=np.uint8)
medians = {}
with Client(socket=socket) as client:
    for rows, binary in [(1, True), (1, False), (256, True)]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            client.infer("thirds", x[:rows], binary=binary)
            times.append(time.perf_counter() - began)
        medians[f"{rows} {binary}"] = statistics.median(times)
print(json.dumps(medians))
"""
NAMES = {"1 True": "one sample, bytes", "1 False": "one sample, JSON", "256 True": "256 samples, bytes"}


def measure(folder: Path, *, quick: bool) -> list[Row]:
    """Medians by what is asked, in microseconds."""
    serving = Serving()
    serving.swap("thirds", model(agent_bundles.make()))
    root = folder / "api"
    root.mkdir()
    with served(root, serving):
        command = [sys.executable, "-c", APP, str(root / "api.sock"), "200" if quick else "2000"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    medians: dict[str, float] = json.loads(done.stdout)
    return [Row(f"local API round trip, {NAMES[key]} (median)", "us", 1e6 * medians[key]) for key in NAMES]
