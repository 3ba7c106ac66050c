"""What an operator asks of this device from afar: more of its log for a while, a diagnostics archive, a measurement."""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from contract import codec
from contract.messages import BundleRef, Command, CommandReply, Measured
from edge_agent import diagnostics, logs
from edge_agent.errors import AgentError
from edge_agent.events import Tell, silent
from edge_agent.liveness import Stopping
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_WAITING = 16
_REMEMBERED = 100
_LONGEST_S = 7 * 86400.0
_DONE = "commands"
_STEP_S = 300.0  # that an archive may take; the doctor within waits for a network that may be away


class Remote:
    """Takes commands, carries each out once, and answers through the outbox.

    Attributes:
        wake: set it so that `work` looks again.
    """

    def __init__(
        self,
        root: Path,
        *,
        state: State,
        stopping: Stopping,
        log: Callable[[], str],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        pause_s: float = 60.0,
        bench: Callable[[BundleRef, Callable[[], bool]], Measured],
        tell: Tell = silent,
    ) -> None:
        """Prepare.

        Args:
            root: the agent's folder.
            state, stopping: of the agent.
            log: gives the newest log lines.
            clock: seconds since the epoch.
            monotonic: seconds.
            pause_s: between two archives: each costs the device seconds of work and the link 128 KiB.
            bench: measures a bundle, until its second argument says to give up; raises AgentError, OSError.
            tell: hears of each command that was carried out.
        """
        self.wake = threading.Event()
        self._root, self._state, self._stopping, self._log = root, state, stopping, log
        self._clock, self._monotonic, self._pause_s, self._tell = clock, monotonic, pause_s, tell
        self._bench = bench
        self._waiting: queue.Queue[Command] = queue.Queue(_WAITING)
        self._usual: int | None = None  # the level to go back to; None while it holds
        self._back_at = self._next_archive_at = -float("inf")

    def accept(self, command: Command) -> None:
        """Take a command; one that was answered before, or too many at once, is left to come again."""
        if command.id not in self._state.get(_DONE, list, []):
            with suppress(queue.Full):
                self._waiting.put_nowait(command)
                self.wake.set()

    def work(self, wake: threading.Event) -> None:
        """Carry out what waits, and put the log level back when its time is over."""
        timeout = max(0.0, self._back_at - self._monotonic()) if self._usual is not None else None
        with self._stopping.resting():
            wake.wait(timeout)
        wake.clear()
        if self._usual is not None and self._monotonic() >= self._back_at:
            logging.getLogger().setLevel(self._usual)
            self._usual = None
            _LOG.warning("the log level is as usual again")
        while not self._stopping.is_set():
            try:
                command = self._waiting.get_nowait()
            except queue.Empty:
                return
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        done: list[str] = self._state.get(_DONE, list, [])
        if command.id in done:
            return
        content, error = b"", ""
        try:
            content = self._result(command)
        except (AgentError, OSError, MemoryError) as failure:
            if self._stopping.is_set():
                return  # it comes again with the next start
            error = str(failure) or type(failure).__name__
        with self._state.transaction():
            self._state.put(_DONE, [*done, command.id][-_REMEMBERED:])
            self._state.report(CommandReply(command=command.id, error=error[:500], content=content))
        self._tell("command", command=command.id, kind=command.kind, error=error)

    def _result(self, command: Command) -> bytes:
        if not self._clock() < command.expires_at:  # also where it is NaN
            raise AgentError(f"it had expired when it came; the device's clock says {self._clock():.0f}")
        if command.kind == "diagnostics":
            return self._archive()
        if command.kind == "bench" and command.bundle is not None:
            return codec.encode_json(self._bench(command.bundle, lambda: self._clock() >= command.expires_at))
        self._change_level(command)
        return b""

    def _change_level(self, command: Command) -> None:
        if not 0 < command.seconds <= _LONGEST_S:
            raise AgentError(f"a log level for {command.seconds} s; at most {_LONGEST_S:.0f}")
        if self._usual is None:
            self._usual = logging.getLogger().level
        self._back_at = self._monotonic() + command.seconds
        logs.set_level(command.level)
        _LOG.warning("the log level is %s for %.0f s, as the operator asked", command.level, command.seconds)
        self.wake.set()  # to wait for the end of it

    def _archive(self) -> bytes:
        if self._monotonic() < self._next_archive_at:
            raise AgentError(f"one archive in {self._pause_s:.0f} s is enough; ask again later")
        self._next_archive_at = self._monotonic() + self._pause_s
        with self._stopping.patient(_STEP_S):
            return diagnostics.archive(self._root, self._log(), environment=dict(os.environ))
