"""One source at work: pull a batch, infer it, count it, remember the position; whatever fails, the others go on."""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress

import msgspec
import numpy as np

from contract import codec
from contract.errors import ContractError
from edge_agent.config import Source
from edge_agent.errors import AgentError, ConfigError, RuntimeModelError, SampleError, UnavailableError
from edge_agent.events import Tell
from edge_agent.liveness import Stopping
from edge_agent.monitor import Monitor
from edge_agent.serving import Inference, Model, Serving
from edge_agent.sources import payload, plugin
from edge_agent.sources.plugin import Batch, Context
from edge_agent.sources.push import Pushes
from edge_agent.state import State

_LOG = logging.getLogger(__name__)
_BACKOFF_S = (1.0, 60.0)
_SAID_S = 60.0  # samples that are passed over are said so often


class Progress(msgspec.Struct, frozen=True):
    """How far a source is."""

    position: str = ""
    samples: int = 0
    passed_over: int = 0


class SourceWorker:
    """Pulls one source; `run` is the body of its thread."""

    def __init__(
        self,
        source: Source,
        *,
        serving: Serving,
        monitor: Monitor,
        state: State,
        stopping: Stopping,
        pushes: Pushes,
        keep: Callable[[str, np.ndarray, np.ndarray], None] | None,
        clock: Callable[[], float],
        tell: Tell,
    ) -> None:
        """Prepare.

        Args:
            source: its entry in `agent.toml`.
            serving, monitor, state, stopping: of the agent.
            pushes: between the local API and sources of kind `http`.
            keep: keeps labelled samples of a model for training; None keeps none.
            clock: seconds since the epoch.
            tell: hears when the source fails or ends.
        """
        self._source, self._serving, self._monitor, self._state = source, serving, monitor, state
        self._stopping, self._pushes, self._keep, self._clock, self._tell = stopping, pushes, keep, clock, tell
        self.name = f"source/{source.kind}-{hashlib.sha256(codec.encode_json(source)).hexdigest()[:12]}"
        self._progress = state.get(self.name, Progress, Progress())
        self._said_at, self._unsaid, self._undecided = float("-inf"), 0, False

    def run(self) -> None:
        """Pull until the source or the agent ends. A source that fails is opened again, later and later."""
        delay = _BACKOFF_S[0]
        while not self._stopping.is_set():
            before = self._progress.samples
            reason = self._pull()
            if not reason:
                return
            if self._progress.samples > before:
                delay = _BACKOFF_S[0]
            self._say("failed", f"{reason}; opened again in {delay:.0f} s")
            self._stopping.wait(delay)
            delay = min(2 * delay, _BACKOFF_S[1])

    def _pull(self) -> str:
        """Open the source and pull until it ends, or fails; then the reason, if opening it again may help."""
        try:
            kind = plugin.find(self._source.kind)
            options = kind.read_options(self._source.kind, self._source.options)
            context = Context(self._progress.position, self._stopping, self._pushes)
            with closing(kind.open(options, context)) as batches:
                for batch in batches:
                    self._take(batch)
        except ConfigError as error:
            self._say("failed", f"{error}; mend agent.toml and start the agent again")
        except (AgentError, ContractError, OSError) as error:
            return str(error)
        except Exception as error:  # noqa: BLE001  # a plug-in may raise anything
            _LOG.exception("%s failed unexpectedly", self.name)
            return f"{type(error).__name__}, see the log"
        else:
            if not self._stopping.is_set():
                self._say("ended", "it has no more samples")
        return ""

    def _take(self, batch: Batch) -> None:
        """Infer and count a batch; without a model, wait for one."""
        if batch.passed_over:
            self._pass_over(batch.passed_over, batch.reason)
        while not self._stopping.is_set():
            name = self._model_name()
            if name is None and len(self._serving.names()) > 1 and not self._undecided:
                self._undecided = True
                self._say("waits", "several models serve; set its `model` in agent.toml to one of them")
            try:
                if name is not None:
                    with self._serving.use(name) as model:
                        self._count(model, batch)
                    return
            except UnavailableError:
                pass
            self._stopping.wait(0.5)

    def _model_name(self) -> str | None:
        if self._source.model:
            return self._source.model
        return self._serving.only()

    def _count(self, model: Model, batch: Batch) -> None:
        inference, rows = None, np.zeros(0, np.intp)
        if batch.x is not None:
            try:
                x = payload.fit(batch.x, model.input_shape, batch.y)
                if batch.position:
                    inference, rows = self._infer(model, x)
                else:
                    rows = self._step(model, x)
                self._keep_labelled(model, x[rows], None if batch.y is None else batch.y[rows])
            except SampleError as error:
                self._pass_over(len(batch.x) if batch.x.ndim > 1 else 1, str(error))
        progress = msgspec.structs.replace(
            self._progress,
            position=batch.position or self._progress.position,
            samples=self._progress.samples + len(rows),
        )
        if batch.position:  # counted and remembered together, so that a kill neither loses nor repeats a sample
            self._monitor.count(model, inference, lambda: self._state.put(self.name, progress))
        elif len(rows):
            self._monitor.record(model, len(rows))
        self._progress = progress

    def _step(self, model: Model, x: np.ndarray) -> np.ndarray:
        """Infer sample by sample, each counted by the model; which rows could be inferred."""
        good = []
        for row, sample in enumerate(x):
            try:
                model.step(sample)
                good.append(row)
            except (ContractError, RuntimeModelError) as error:
                self._pass_over(1, str(error))
        return np.array(good, np.intp)

    def _infer(self, model: Model, x: np.ndarray) -> tuple[Inference | None, np.ndarray]:
        """Infer what can be inferred, and which rows those are."""
        try:
            return model.infer(x), np.arange(len(x))
        except (ContractError, RuntimeModelError) as error:
            if len(x) == 1:
                self._pass_over(1, str(error))
                return None, np.zeros(0, np.intp)
        parts = [(self._infer(model, x[row : row + 1])[0], row) for row in range(len(x))]
        good = [(part, row) for part, row in parts if part is not None]
        if not good:
            return None, np.zeros(0, np.intp)
        features = np.concatenate([part.features for part, _ in good])
        probabilities = np.concatenate([part.probabilities for part, _ in good])
        return Inference(features, probabilities), np.array([row for _, row in good], np.intp)

    def _keep_labelled(self, model: Model, x: np.ndarray, y: np.ndarray | None) -> None:
        if y is None or self._keep is None or not len(x):
            return
        known = (y >= 0) & (y < len(model.labels))
        if not known.all():
            self._pass_over(int((~known).sum()), f"a label is outside 0 to {len(model.labels) - 1}")
        if known.any():
            self._keep(model.ref.model, x[known], y[known])

    def _pass_over(self, count: int, reason: str) -> None:
        self._progress = msgspec.structs.replace(self._progress, passed_over=self._progress.passed_over + count)
        self._unsaid += count
        if time.monotonic() - self._said_at >= _SAID_S:
            self._said_at = time.monotonic()
            self._say("passed-over", f"{self._unsaid} samples, the last because {reason}")
            self._unsaid = 0

    def _say(self, what: str, reason: str) -> None:
        _LOG.warning("%s %s: %s", self.name, what, reason)
        with suppress(sqlite3.Error):  # a full disk; the log has it
            self._state.put(self.name, self._progress)
            self._state.event("source", f"{self.name} {what}: {reason}"[:500], at=self._clock())
        self._tell("source", source=self.name, what=what, reason=reason)
