"""How fast a cohort trains, beside Flower's own engine, pfl-research in one and two processes, and a plain loop.

All of a workload's contenders are alive together and train a round each in turn, so that a busy machine is as busy for
one as for the other; figures are medians. Peers live in environments of their own, in `.venv-peers` or the folder that
FIELDFARE_PEERS names (`make simulation-peers` makes them); a peer that is not there has no rows.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import simulation_memory
from benchmarks.results import Row, arguments, show
from benchmarks.simulation_ours import update_error
from benchmarks.simulation_workloads import WORKLOADS, Workload, told
from tests.fakes.broker_process import free_port

ROOT = Path(__file__).parents[1]
_WARM = 2  # rounds that do not count
_ERROR = 1e-3


def _contenders(name: str) -> dict[str, list[str]]:
    """Commands by contender; peers only where their environment is."""
    peers = Path(os.environ.get("FIELDFARE_PEERS", ROOT / ".venv-peers"))
    threads = "2" if WORKLOADS[name].wide else "1"
    mine = [sys.executable, "-m", "benchmarks.simulation_ours"]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    theirs = {
        "flower": ("flower", ["-m", "benchmarks.simulation_flower", name]),
        "pfl": ("pfl", ["-m", "benchmarks.simulation_pfl", name, threads]),
        "pfl2": ("pfl", [*torchrun, "-m", "benchmarks.simulation_pfl", name, "1"]),
    }
    found = {contender: [*mine, contender, name] for contender in ("engine", "rounds", "loop")}
    for contender, (environment, command) in theirs.items():
        python = peers / environment / "bin" / "python"
        if python.exists():
            found[contender] = [str(python), *command]
        else:
            print(f"{contender} is left out: {python} is missing; see `make simulation-peers`", file=sys.stderr)
    return found


@contextmanager
def _started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A contender and all that it starts, ended together."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=10)  # its standard input ends
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _round(process: subprocess.Popen[str]) -> float:
    """Let a contender train a round; its own count of the seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for line in process.stdout:
        seconds = told(line)
        if seconds is not None:
            return seconds
    raise SystemExit(f"a contender ended: {process.args}")


def measure(name: str, *, quick: bool) -> list[Row]:
    """Rows of one workload."""
    seconds: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        running = {who: stack.enter_context(_started(command)) for who, command in _contenders(name).items()}
        for turn in range(_WARM + (3 if quick else 9)):
            for who, process in running.items():
                spent = _round(process)
                if turn >= _WARM:
                    seconds.setdefault(who, []).append(spent)
    return _rows(name, WORKLOADS[name], {who: median(each) for who, each in seconds.items()})


def _rows(name: str, workload: Workload, seconds: dict[str, float]) -> list[Row]:
    what, ours, through = f"{name}: {workload.what}", seconds["engine"], seconds["rounds"]
    rows = [Row(f"{what}: a round, against a plain loop", "s", ours, seconds["loop"])]
    if "flower" in seconds:
        peer = seconds["flower"]
        rows.append(Row(f"{what}, against Flower's engine", "s", ours, peer, goal=peer / workload.flower))
        least = workload.flower * workload.shrinks
        rows.append(Row(f"{what}, through FedAvg, against Flower's engine", "s", through, peer, goal=peer / least))
    if "pfl" in seconds:
        rows.append(Row(f"{what}, against pfl-research, one process", "s", ours, seconds["pfl"]))
        rows.append(
            Row(f"{what}, against pfl-research, two", "s", ours, seconds["pfl2"], goal=seconds["pfl2"] / workload.pfl)
        )
    rows.append(Row(f"{name}: difference of the update from the loop's, relative", "", update_error(name), goal=_ERROR))
    return rows


def main() -> int:
    groups = [*WORKLOADS, "memory"]
    options = arguments(__doc__, groups=groups)
    rows: list[Row] = []
    for name in options.only or groups:
        if name != "memory":
            rows += measure(name, quick=options.quick)
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows += simulation_memory.measure(Path(folder), quick=options.quick)
    return show(rows, options.json)


if __name__ == "__main__":
    sys.exit(main())
