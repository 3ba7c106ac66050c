"""The peer of the agent's memory: Flower's own device side, idle on a loopback SuperLink, with no app and no model."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.fakes.broker_process import eventually, free_port

OFFLINE = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


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


def idle_mb(folder: Path) -> float:
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
            return sum(one.memory_info().rss / 1e6 for one in (process, *process.children(recursive=True)))


def _listens(port: int) -> bool:
    return any(
        connection.laddr.port == port for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"
    )


def _wait(condition: Callable[[], object], log: Path) -> None:
    if not eventually(condition, 60):
        raise SystemExit(f"the peer did not start:\n{log.read_text()}")
