"""`fieldfare serve` with every role: one small parent that starts the roles as processes and starts again what dies."""

import contextlib
import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from coordinator import config as configuration
from coordinator.errors import SetupError
from coordinator.files import write_private
from coordinator.jobs import processes

ROLES = ("broker", "coordinator", "signer")
SETUP_STATUS = 78  # how a role says that starting it again will not help (EX_CONFIG of sysexits.h)
PARENT = "FIELDFARE_SUPERVISOR"  # environment: number of the process whose end ends a role
STOP_S = 15.0
_HEALTHY_S = 10.0  # a role that lived this long is started again at once
_TRIES = 3

logger = logging.getLogger(__name__)


class _Role:
    """One role's process, and how often it failed to come up."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self._command = command
        self._log = log
        self.child: subprocess.Popen[bytes] | None = None
        self.failures = 0
        self._began = 0.0
        self._not_before = 0.0

    def start(self) -> None:
        environment = {**os.environ, PARENT: str(os.getpid()), "PYTHONUNBUFFERED": "1"}
        with self._log.open("ab") as log:
            self.child = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )
        self._began = time.monotonic()

    def look(self) -> bool:
        """Start it again if it died; whether it was started.

        Raises:
            SetupError: it says, time and again, that something is missing.
        """
        now = time.monotonic()
        if self.child is not None:
            status = self.child.poll()
            if status is None:
                return False
            self.failures = 0 if now - self._began > _HEALTHY_S else self.failures + 1
            logger.warning("%s ended with status %d and starts again", self.name, status)
            if status == SETUP_STATUS and self.failures >= _TRIES:
                raise SetupError(f"{self.name}: {self._last_words()}")
            self.child = None
            self._not_before = now + min(5.0, 0.1 * 2**self.failures) if self.failures else now
        if now < self._not_before:
            return False
        self.start()
        return True

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("fieldfare: ") if lines else "no reason given"

    def stop(self) -> None:
        """Ask it to end, then make it."""
        if self.child is None:
            return
        self.child.terminate()
        try:
            self.child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            logger.warning("%s did not end in %g s and is killed", self.name, STOP_S)
            self.child.kill()
            self.child.wait()


def run(state: Path, signer_state: Path, *, signer_here: bool = False) -> None:
    """Run every role until SIGTERM or SIGINT; in production the signer's only where `signer_here` says so.

    Raises:
        SetupError: another supervisor runs on this state folder, or a role cannot come up.
    """
    stopping = False

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True

    with _only_one(state):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        _end_leftovers(state)  # to the end, even when asked to stop: nobody else would end them
        roles = [
            _Role(name, _command(name, state, signer_state), state / "logs" / f"{name}.log")
            for name in _names(configuration.load(state), signer_here=signer_here)
        ]
        try:
            while not stopping:
                for role in roles:
                    if role.look():
                        _note(state, roles)
                time.sleep(0.1)
        finally:
            for name in ("coordinator", "signer", "broker"):  # who speaks to others goes first
                for role in roles:
                    if role.name == name:
                        role.stop()
            _file(state).unlink(missing_ok=True)


def _names(settings: configuration.Config, *, signer_here: bool) -> list[str]:
    absent = {"broker"} if settings.broker == "external" else set()
    if settings.mode == "production" and not signer_here:
        absent.add("signer")
    return [name for name in ROLES if name not in absent]


def _command(role: str, state: Path, signer_state: Path) -> list[str]:
    options = ["--state", str(state), "--signer-state", str(signer_state), "--role", role]
    allowed = ["--signer-here"] if role == "signer" else []  # who started it was asked
    return [sys.executable, "-m", "coordinator", *options, *allowed]


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    with (state / "serve.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SetupError(f"{state}: a coordinator runs on this state folder already") from error
        yield


def _file(state: Path) -> Path:
    return state / "processes.json"


def _note(state: Path, roles: list[_Role]) -> None:
    """Write down who runs: for the next supervisor, should this one be killed, and for people."""
    running = {role.name: role.child.pid for role in roles if role.child is not None}
    known = {name: {"pid": pid, "started": processes.started(pid)} for name, pid in running.items()}
    write_private(_file(state), json.dumps(known, indent=2).encode())


def _end_leftovers(state: Path) -> None:
    """End the roles of a supervisor that was killed: their ports are needed."""
    try:
        known = json.loads(_file(state).read_bytes())
    except (OSError, json.JSONDecodeError):
        return
    alive = [entry["pid"] for entry in known.values() if _is_alive(entry)]
    for pid in alive:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    while any(_is_alive(entry) for entry in known.values()):
        if time.monotonic() > deadline:
            for entry in filter(_is_alive, known.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(entry["pid"], signal.SIGKILL)
        time.sleep(0.05)


def _is_alive(entry: dict[str, object]) -> bool:
    pid = entry["pid"]
    return isinstance(pid, int) and entry["started"] is not None and processes.started(pid) == entry["started"]
