"""Local inference, counted: sample files in, integer counts on the bundle's bins out. No sample leaves.

Counts, the window they fall into and "this file is done" are one transaction, so each file counts exactly once.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from contract import profile
from contract.errors import ContractError
from contract.messages import ProfileWindow
from edge_agent import samples
from edge_agent.config import Config
from edge_agent.errors import RuntimeModelError, SampleError, UnavailableError
from edge_agent.serving import Inference, Model, Serving
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_FORGET = 100  # names of files that are gone; beyond it (and twice the files present) they are forgotten
_RUNS, _TRIED, _TRIES = "runs", "tried", 3
_RECORD_S = 1.0  # what models counted is written down so often; a kill loses no more of it


class _Tried(msgspec.Struct, frozen=True):
    """The sample file that was begun last, and how often it was begun without an end."""

    name: str
    times: int


class Monitor:
    """Feeds the source to the model and fills profile windows."""

    def __init__(
        self, config: Config, *, source: Path, state: State, serving: Serving, clock: Callable[[], float]
    ) -> None:
        """Prepare.

        Args:
            config: of the agent.
            source: folder of sample files.
            state, serving: of the agent.
            clock: seconds since the epoch.
        """
        self._config, self._source = config, source
        self._state, self._serving, self._clock = state, serving, clock
        self._done = state.files_done()
        self._lock = threading.RLock()
        self._recorded: dict[Model, None] = {}  # models that counted since the last `flush`, oldest first
        self._uncounted: dict[Model, profile.Counts] = {}  # what could not be written down yet
        self._recorded_rows, self._recorded_since = 0, clock()
        self._since: dict[str, float] = dict.fromkeys(state.windows(), clock())  # when something was last counted
        # After a run that did not end well, a file is noted before it is begun: perhaps it is what crashes the agent.
        self._careful = state.get(_RUNS, bool, False)
        state.note(_RUNS, True)
        self._tried = state.get(_TRIED, _Tried, _Tried("", 0))

    def tick(self) -> bool:
        """Process the next file, or close a window that nothing was added to for long.

        Returns:
            Whether a file was processed, so that there may be more.
        """
        if (self._recorded or self._uncounted) and abs(self._clock() - self._recorded_since) >= _RECORD_S:
            self.flush()
        present = samples.names(self._source)
        self._forget(present)
        waiting = next((name for name in present if name not in self._done), None)
        fed = self._fed()
        if fed is None or waiting is None:
            self._close_quiet()
            return False
        try:
            with self._serving.use(fed) as model, self._lock:
                self._process(model, waiting)
        except UnavailableError:  # it was taken off the device just now
            return False
        return True

    def close(self) -> None:
        """Write down what is left; the agent ends well."""
        self.flush()
        self._state.put(_RUNS, None)

    def _fed(self) -> str | None:
        """The model whose input the source is."""
        if self._config.source_model:
            return self._config.source_model
        return self._serving.only()

    def record(self, model: Model, rows: int) -> None:
        """Note that a model inferred and counted so many: on disk within a second, or when they are a window's worth.

        Call it within `serving.use`, so that inferences of two bundles do not take turns. It does not fail: where the
        disk takes nothing, the counts wait.
        """
        with self._lock:
            if not self._recorded:
                self._recorded_since = self._clock()
            self._recorded[model] = None
            self._recorded_rows += rows
            if self._recorded_rows >= self._config.window_samples:
                self._recorded_rows = 0  # where it fails, it is tried again after as many
                try:
                    self.flush()
                except (sqlite3.Error, ContractError) as error:
                    _LOG.warning("inferences wait to be written down: %s", error)

    def count(self, model: Model, inference: Inference | None, also: Callable[[], None]) -> None:
        """Count an inference now, in one transaction with what `also` writes; call it within `serving.use`."""
        rows = 0 if inference is None else len(inference.features)
        with self._lock:
            with self._state.transaction():
                if inference is not None:
                    self._count(model, inference, rows, self._clock())
                    self._state.put("inferences", self._state.get("inferences", int, 0) + rows)
                also()
            self._serving.count(rows)

    def flush(self) -> None:
        """Write down what models counted since the last time."""
        with self._lock:
            self._recorded_since = now = self._clock()
            for model in self._recorded:  # an old bundle before the one that took its place
                counts = model.take()
                if counts.samples:
                    waiting = self._uncounted.get(model, profile.zero(model.profile))
                    self._uncounted[model] = profile.add(waiting, counts)
            self._recorded.clear()
            made = sum(counts.samples for counts in self._uncounted.values())
            with self._state.transaction():
                for model, counts in self._uncounted.items():
                    self._add(model.ref.model, self._open(model, now), counts, now)
                self._state.put("inferences", self._state.get("inferences", int, 0) + made)
            self._since.update((model.ref.model, now) for model in self._uncounted)
            self._serving.count(made)
            self._uncounted.clear()
            self._recorded_rows = 0

    def _close_quiet(self) -> None:
        with self._lock:
            self._close_quiet_windows()

    def _close_quiet_windows(self) -> None:
        for model in list(self._since):
            quiet = abs(self._clock() - self._since[model])  # the clock may have been set back
            if quiet >= self._config.window_idle_s and self._state.has_room_for_windows():
                self._state.close_window(model)
                del self._since[model]

    def labelled(self) -> int:
        """Labelled samples that a round could train on; none where the source cannot be listed."""
        try:
            present = samples.names(self._source)
        except OSError:
            return 0
        return min(sum(self._done.get(name, 0) for name in present), self._config.max_samples)

    def labelled_files(self) -> list[Path]:
        """Files that were counted and hold labels, oldest first."""
        return [self._source / name for name in samples.names(self._source) if self._done.get(name, 0)]

    def _forget(self, present: list[str]) -> None:
        if not present or len(self._done) <= 2 * len(present) + _FORGET:  # no files at all: perhaps no disk
            return
        kept = set(present).intersection(self._done)
        self._state.forget_files(self._done.keys() - kept)
        self._done = {name: self._done[name] for name in kept}

    def _process(self, model: Model, name: str) -> None:
        now = self._clock()
        if self._careful and not self._may_try(name):
            self._pass_over(name, f"the agent crashed {_TRIES} times while this file was inferred", now)
            return
        try:
            read = samples.read(self._source, name)
            inference = model.infer(read.x) if len(read.x) else None
        except (SampleError, ContractError, RuntimeModelError, ValueError) as error:
            self._pass_over(name, str(error), now)
            return
        count, labelled = len(read.x), 0 if read.y is None else len(read.x)
        with self._state.transaction():
            if inference is not None:
                self._count(model, inference, count, now)
            self._state.file_done(name, samples=count, labelled=labelled, at=now)
            self._state.put("inferences", self._state.get("inferences", int, 0) + count)
        self._serving.count(count)
        self._done[name] = labelled

    def _may_try(self, name: str) -> bool:
        times = self._tried.times if self._tried.name == name else 0
        if times >= _TRIES:
            return False
        self._tried = _Tried(name, times + 1)
        self._state.put(_TRIED, self._tried)
        return True

    def _pass_over(self, name: str, reason: str, now: float) -> None:
        _LOG.warning("sample file %s is passed over: %s", name, reason)
        with self._state.transaction():
            self._state.file_done(name, samples=0, labelled=0, error=reason[:500], at=now)
            self._state.event("sample", f"{name}: {reason}"[:500], at=now)
        self._done[name] = 0

    def _count(self, model: Model, inference: Inference, count: int, now: float) -> None:
        start = 0
        while start < count:
            window = self._open(model, now)
            room = self._config.window_samples - window.counts.samples
            stop = min(start + room, count) if room > 0 else count
            self._add(model.ref.model, window, model.count(inference, slice(start, stop)), now)
            start = stop
        self._since[model.ref.model] = self._clock()

    def _open(self, model: Model, now: float) -> ProfileWindow:
        window = self._state.window(model.ref.model)
        if window is not None and window.bundle_sha256 == model.ref.sha256:
            return window
        self._state.close_window(model.ref.model)
        return ProfileWindow(
            bundle_sha256=model.ref.sha256,
            profile_digest=model.profile_digest,
            started_at=now,
            ended_at=now,
            counts=profile.zero(model.profile),
        )

    def _add(self, model: str, window: ProfileWindow, counts: profile.Counts, now: float) -> None:
        ended = max(now, window.started_at)  # the clock may have been set back
        grown = msgspec.structs.replace(window, ended_at=ended, counts=profile.add(window.counts, counts))
        self._state.set_window(model, grown)
        if grown.counts.samples >= self._config.window_samples and self._state.has_room_for_windows():
            self._state.close_window(model)
