"""Holds updates back while the owner's rules say so: the shell around `policy`, with clocks and the metered file."""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from edge_agent import policy
from edge_agent.config import Config
from edge_agent.errors import HeldError
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_YES = ("1", "yes", "true")
_LOOK_S = 2.0  # how long a verdict holds while blocks come


class Gate:
    """Asked before an update begins, while it is fetched, and before it is activated."""

    def __init__(
        self,
        config: Config,
        root: Path,
        *,
        state: State,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            root: a relative `metered_file` is below it.
            state: remembers when a wish was first seen, by the agent's running time.
            clock: seconds since the epoch, for the wall.
            monotonic: seconds.
        """
        self._config, self._state = config, state
        self._file = root / config.updates.metered_file if config.updates.metered_file else None
        self._clock, self._monotonic = clock, monotonic
        self._held: dict[str, tuple[int, str]] = {}  # by model: revision and reason
        self._looked: tuple[float, bool] | None = None
        self._lock = threading.Lock()
        state.note("held", None)  # of an earlier start; a full disk must not keep us from serving

    def check(self, model: str, revision: int) -> policy.Verdict:
        """Return where a wish may be brought about now.

        Raises:
            HeldError: not yet; call again later.
        """
        verdict = self._verdict(self._delay_left(model, revision))
        if verdict.wait_s > 0:
            self._note(model, (revision, verdict.reason.partition(",")[0]))
            raise HeldError(f"{model} {verdict.reason}")
        self._note(model, None)
        return verdict

    def still(self, model: str) -> policy.Verdict:
        """The same while a bundle comes, when its delay is over; errors as in `check`."""
        verdict = self._verdict(0.0)
        if verdict.wait_s > 0:
            raise HeldError(f"{model} {verdict.reason}")
        return verdict

    def _note(self, model: str, held: tuple[int, str] | None) -> None:
        """Say why a model waits: once, and not with every look."""
        if held == self._held.get(model):
            return
        self._held.pop(model, None)
        if held is not None:
            self._held[model] = held
            _LOG.info("%s %s", model, held[1])
            self._state.event("held", f"{model} {held[1]}", at=self._clock())
        texts = [f"{name} {reason}" for name, (_, reason) in sorted(self._held.items())]
        self._state.put("held", "; ".join(texts) or None)

    def _verdict(self, delay_left_s: float) -> policy.Verdict:
        local = time.localtime(self._clock())
        local_s = local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec
        return policy.decide(
            self._config.updates, delay_left_s=delay_left_s, local_s=local_s, metered=self._is_metered()
        )

    def _delay_left(self, model: str, revision: int) -> float:
        most = self._config.updates.random_delay_s
        if not most:
            return 0.0
        key, now = f"first seen {model}", self._state.running_s()
        seen, at = self._state.get(key, tuple[int, float], (-1, 0.0))
        if seen != revision:
            self._state.put(key, (revision, now))
            at = now
        return at + policy.delay_s(most, self._config.device, model, revision) - now

    def _is_metered(self) -> bool:
        """What the file says; one that cannot be read says yes, since bytes that were paid for do not come back."""
        if self._file is None or self._config.updates.metered == "allow":
            return False
        with self._lock:
            now = self._monotonic()
            if self._looked is None or not 0 <= now - self._looked[0] < _LOOK_S:
                try:
                    with self._file.open("rb") as file:
                        metered = file.read(64).strip().lower().decode("ascii", "replace") in _YES
                except OSError:
                    metered = True
                self._looked = now, metered
            return self._looked[1]
