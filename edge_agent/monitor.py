"""Local inference, counted: sample files in, integer counts on the bundle's bins out. No sample leaves.

Counts, the window they fall into and "this file is done" are one transaction, so each file counts exactly once.
"""

import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from contract import profile
from contract.errors import ContractError
from contract.messages import ProfileWindow
from edge_agent import samples
from edge_agent.config import Config
from edge_agent.errors import RuntimeModelError, SampleError, UnavailableError
from edge_agent.serving import Inference, Model, Serving
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_FORGET = 1000  # names of files that are gone; beyond it (and twice the files present) they are forgotten
_RECORD_S = 1.0  # inferences that apps asked for are counted together so often; a kill loses no more of them


@dataclass
class _Waiting:
    """What apps asked of a model that is not written down yet; `stepped` where the model itself has counts."""

    stepped: bool = False
    inferences: list[Inference] = field(default_factory=list)
    counts: list[profile.Counts] = field(default_factory=list)


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
        self._waiting: dict[Model, _Waiting] = {}  # in the order of their first
        self._rows, self._rows_since = 0, clock()
        self._since: dict[str, float] = dict.fromkeys(state.windows(), clock())  # when something was last counted

    def tick(self) -> bool:
        """Process the next file, or close a window that nothing was added to for long.

        Returns:
            Whether a file was processed, so that there may be more.
        """
        if self._rows and abs(self._clock() - self._rows_since) >= _RECORD_S:
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

    def _fed(self) -> str | None:
        """The model whose input the source is."""
        if self._config.source_model:
            return self._config.source_model
        only = self._serving.only()
        return only.ref.model if only is not None else None

    def record(self, model: Model, inference: Inference | None) -> None:
        """Count what an app asked for; on disk within a second, or when it is a window's worth.

        Call it within `serving.use`, so that inferences of two bundles do not take turns. It does not fail: where the
        disk takes nothing, at most eight windows' worth waits, and more is lost.

        Args:
            model: that was used.
            inference: what came; None for one `model.step`, which the model counts itself until it is asked.
        """
        with self._lock:
            if not self._rows:
                self._rows_since = self._clock()
            waiting = self._waiting.setdefault(model, _Waiting())
            if inference is None:
                waiting.stepped = True
            else:
                waiting.inferences.append(inference)
            self._rows += 1 if inference is None else len(inference.features)
            if self._rows >= self._config.window_samples:
                self._collect(model)
                try:
                    self._write()
                except (sqlite3.Error, ContractError) as error:
                    _LOG.warning("inferences that apps asked for are not counted: %s", error)
                    if self._rows >= 8 * self._config.window_samples:
                        self._waiting, self._rows = {}, 0

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
        """Write down what `record` was told."""
        for model in [model for model, waiting in list(self._waiting.items()) if waiting.stepped]:
            try:
                with self._serving.use(model.ref.model), self._lock:
                    self._collect(model)
            except UnavailableError:  # it was taken off the device, so nobody uses it any more
                with self._lock:
                    self._collect(model)
        with self._lock:
            self._write()

    def _collect(self, model: Model) -> None:
        """Take the counts of a model's steps; nobody may be using it."""
        waiting = self._waiting.get(model)
        if waiting is not None and waiting.stepped:
            waiting.stepped = False
            waiting.counts.append(model.take())

    def _write(self) -> None:
        """Write down what is collected, in one transaction."""
        now, written = self._clock(), 0
        with self._state.transaction():
            for model, waiting in self._waiting.items():
                for counts in waiting.counts:
                    self._add(model.ref.model, self._open(model, now), counts, now)
                    self._since[model.ref.model] = now
                    written += counts.samples
                if waiting.inferences:
                    features, probabilities = (
                        np.concatenate([getattr(inference, part) for inference in waiting.inferences])
                        for part in ("features", "probabilities")
                    )
                    self._count(model, Inference(features, probabilities), len(features), now)
                    written += len(features)
            self._state.put("inferences", self._state.get("inferences", int, 0) + written)
        self._serving.count(written)
        self._waiting = {model: _Waiting(stepped=True) for model, waiting in self._waiting.items() if waiting.stepped}
        self._rows = self._rows - written if self._waiting else 0

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
        try:
            read = samples.read(self._source / name)
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
