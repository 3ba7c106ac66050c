"""Child processes of the demonstration, each with a log of its own; all of them end with it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from fieldfare.demo.errors import StationFailedError

STOP_S = 10.0  # how long a process may take to end by itself


class Processes:
    """Named child processes. Use with `with`: on the way out they are asked to end, then killed."""

    def __init__(self, logs: Path) -> None:
        """Keep logs in the folder `logs`, one file for each name."""
        self._logs = logs
        self._commands: dict[str, list[str]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log(self, name: str) -> Path:
        """The log file of a process."""
        return self._logs / f"{name}.log"

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start `python -m module arguments...` under a name, in a session of its own; or start it again."""
        self._commands[name] = [sys.executable, "-m", module, *arguments]
        with self.log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                self._commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=_environment(),
            )

    def kill(self, name: str) -> None:
        """End a process as a power cut would (SIGKILL to it alone, not to what it started)."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def restart(self, name: str) -> None:
        """Start a process again as it was started before."""
        _, _, module, *arguments = self._commands[name]
        self.start(name, module, *arguments)

    def check(self) -> None:
        """See that every process still runs.

        Raises:
            StationFailedError: naming the one that ended.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise StationFailedError(
                    f"the process {name!r} ended with status {process.returncode}", log=self.log(name)
                )

    def stop(self) -> None:
        """End them all, the youngest first; who does not end by itself, or when a person asks again, is killed."""
        youngest_first = list(reversed(self._running.values()))
        deadline = time.monotonic() + STOP_S
        try:
            for process in youngest_first:
                process.terminate()
            for process in youngest_first:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for process in youngest_first:
                _kill_group(process.pid)
                process.wait()
            self._running.clear()


def run(log: Path, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run `python -m module arguments...` to its end.

    Raises:
        StationFailedError: it failed; the message is what it said last.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=_environment() | dict(environment or {}),
        check=False,
    )
    with log.open("ab") as file:
        file.write(done.stdout)
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines() or ["no word"]
        raise StationFailedError(f"{module} {arguments[0]} failed: {lines[-1]}", log=log)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONUNBUFFERED": "1"}


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
