"""Start an agent in one folder after another, without a network, and say how each start went.

`python -m tests.fakes.agent_starts FOLDER...` runs `edge-agent run` twice in each folder and in this very process, so
that what takes long (the imports) is paid once. One line of JSON a folder: a list of `Start` as it went. The variable
AGENT_CLOCK sets the clock that this process reads.
"""

import contextlib
import io
import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_agent.cli import main

_STARTS_S, _SERVES_S = 60.0, 0.2


@dataclass(frozen=True)
class Start:
    """How a start went: the exit status, the versions that served, what was written to standard error, events."""

    status: int
    serves: list[int]
    said: str
    events: list[str]


def start(folder: Path) -> Start:
    """Run the agent until it serves, and a moment longer."""
    out, said, over = io.StringIO(), io.StringIO(), threading.Event()

    def stop_it() -> None:
        deadline = time.monotonic() + _STARTS_S
        while '"started"' not in out.getvalue() and time.monotonic() < deadline and not over.is_set():
            time.sleep(0.02)
        if not over.wait(_SERVES_S):
            os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=stop_it)
    watcher.start()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            status = main(["run", "--state", str(folder), "--json", "--log", "json", "--log-level", "info"])
        finally:
            over.set()
            watcher.join()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    begun = [event for event in events if event["event"] == "started"]
    serves = [bundle["version"] for bundle in begun[0]["bundles"]] if begun else []
    return Start(status, serves, said.getvalue(), [event["event"] for event in events])


def set_clock(now: float) -> None:
    """Let `time.time` begin at another moment."""
    real, shift = time.time, now - time.time()
    time.time = lambda: real() + shift


if __name__ == "__main__":
    if "AGENT_CLOCK" in os.environ:
        set_clock(float(os.environ["AGENT_CLOCK"]))
    for argument in sys.argv[1:]:
        sys.stdout.write(json.dumps([asdict(start(Path(argument))) for _ in range(2)]) + "\n")
        sys.stdout.flush()
