"""One trial: a recipe's stages, one by one, with what earlier trials made, and stopped where it has become hopeless."""

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from compression import recipe
from compression.recipe import Recipe
from compression.search import cache
from compression.search.cache import Cache
from compression.stage import Workbench, Workpiece

QUICK_SAMPLES = 1000
RECOVERS = 0.10  # accuracy that training in later stages may bring back
BROKEN = 0.30  # accuracy lost that nobody wants, where the budget does not say how much


class Stopped(Exception):  # noqa: N818 it is no error: the trial ends early
    """A trial that became hopeless; the message says when and why."""


class OutOfTime(Exception):  # noqa: N818 it is no error either
    """Time was up before a trial ended; it counts as never begun."""


class Trier:
    """What all trials of a search have in common.

    Args:
        start: the model that recipes begin with, Keras.
        bench: data, task, and the seed of all trials.
        pieces: keeps outputs of stages.
        expired: whether time is up; asked before each stage.
    """

    def __init__(self, start: Any, bench: Workbench, pieces: Cache, *, expired: Callable[[], bool]) -> None:
        self._start, self._bench, self._pieces, self._expired = start, bench, pieces, expired
        self._begun = cache.origin(bench)
        chosen = np.random.default_rng(bench.seed).permutation(len(bench.validation.x))[:QUICK_SAMPLES]
        self._x, self._y = bench.validation.x[chosen], bench.validation.y[chosen]
        self._right = self._predicted(start)

    @property
    def origin(self) -> str:
        """SHA-256 of what every trial starts from."""
        return self._begun

    def make(self, which: Recipe, *, most_drop: float | None) -> Workpiece:
        """The artifact of a recipe.

        Args:
            which: checked.
            most_drop: accuracy that may be lost, by the budget; None where it does not say.

        Raises:
            Stopped: it has become hopeless.
            OutOfTime: time was up between two stages.
            CompressionError: a stage cannot do it.
        """
        import tf_keras

        gc.collect()
        tf_keras.backend.clear_session()  # memory, and names of layers that would count on from earlier trials
        piece, done = self._kept(which)
        for index in range(done, len(which.stages)):
            if self._expired():
                raise OutOfTime
            piece = recipe.run_stage(which.stages[index], piece, self._bench)
            self._pieces.put(cache.key(self._begun, which.stages[: index + 1]), piece)
            if piece.form == "model" and (why := self._hopeless(piece.model, which, index, most_drop)):
                raise Stopped(why)
        return piece

    def _kept(self, which: Recipe) -> tuple[Workpiece, int]:
        """The longest beginning of a recipe that was made before, and how many stages that is."""
        for count in range(len(which.stages), 0, -1):
            piece = self._pieces.get(cache.key(self._begun, which.stages[:count]))
            if piece is not None:
                return piece, count
        return Workpiece(self._start), 0

    def _hopeless(self, model: Any, which: Recipe, index: int, most_drop: float | None) -> str:
        lost = self._right.astype(float) - self._predicted(model)
        recovers = any(stage.trains for stage in which.stages[index + 1 :])
        why = hopeless(lost, most_drop=most_drop, recovers=recovers)
        return f"after {which.stages[index].name}: {why}" if why else ""

    def _predicted(self, model: Any) -> np.ndarray:
        found: np.ndarray = model.predict(self._x, batch_size=256, verbose=0).argmax(axis=1) == self._y
        return found


def hopeless(lost: np.ndarray, *, most_drop: float | None, recovers: bool) -> str:
    """Why a model on the way is not worth going on with, or nothing.

    Args:
        lost: for each sample, 1 where only the float model is right, -1 where only this one is, 0 otherwise; (n,).
        most_drop: accuracy that may be lost; None where the budget does not say.
        recovers: whether a later stage trains.
    """
    drop = float(lost.mean())
    error = float(lost.std() / math.sqrt(len(lost)))
    allowed = (BROKEN if most_drop is None else most_drop) + (RECOVERS if recovers else 0.0)
    if not math.isfinite(drop) or drop - 3 * error > allowed:
        later = f", {100 * RECOVERS:g} of them may come back by training" if recovers else ""
        return f"{100 * drop:.1f} points lost, {100 * allowed:.1f} at most could still do{later}"
    return ""
