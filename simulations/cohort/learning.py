"""Clients that train together in the cohort engine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from contract.errors import TransformError
from contract.tensors import Arrays, check_like
from contract.transform import Transform
from simulations.cohort.engine import Engine
from simulations.cohort.grid import CohortGrid
from simulations.cohort.learner import Learner
from simulations.run import Progress, Samples


class CohortLearning:
    """`run.Learning` by the cohort engine."""

    def __init__(
        self,
        learner: Learner,
        transform: Transform,
        train: Samples,
        test: Samples,
        *,
        batch: int,
        start: Arrays | None = None,
        path: str = "",
        folder: Path | None = None,
    ) -> None:
        """Use a learner on samples.

        Args:
            learner: what is trained.
            transform: from raw samples to model input.
            train: dealt out to the clients.
            test: central test set.
            batch: samples of a step.
            start: weights where round 1 starts; None takes the learner's fresh ones.
            path: of the engine; without it, the fastest.
            folder: a new one, where the model input is laid out by client and trained from; None keeps it in memory.

        Raises:
            TensorError: a start that does not fit the learner.
            SimulationError: samples that cannot be trained on.
            ContractError: test samples that do not fit the transform. A client with such a sample fails in its rounds.
        """
        self.start = learner.start if start is None else start
        check_like(self.start, learner.start)
        self.labels, self.groups = train.y, train.groups
        self._engine = Engine(learner, _applied(transform, train.x), train.y, path=path)
        self._test, self._batch = Samples(transform.apply(test.x), np.asarray(test.y, np.int64)), batch
        self._folder = folder
        self.plan: Mapping[str, str | int] = self._engine.plan

    def grid(self, rows: Mapping[str, np.ndarray], *, seed: int, fold: bool, progress: Progress) -> CohortGrid:
        """A grid over clients.

        Raises:
            SimulationError: the folder for the samples is there already, or cannot be written.
        """
        if self._folder is not None:
            rows = dict(zip(rows, self._engine.move(self._folder, list(rows.values())), strict=True))
        return CohortGrid(
            rows, self._engine, like=self.start, seed=seed, batch=self._batch, fold=fold, progress=progress
        )

    def measure(self, weights: Arrays) -> dict[str, float]:
        """Loss and accuracy on the test set."""
        losses, hits = self._engine.score(weights, self._test.x, self._test.y, np.arange(len(self._test.y)))
        return {"loss": float(losses.mean()), "accuracy": float(hits.mean())}


def _applied(transform: Transform, raw: np.ndarray) -> np.ndarray:
    """Model input; NaN in place of samples that the transform does not give numbers for."""
    try:
        return transform.apply(raw)
    except TransformError:
        transform.check(raw)  # a wrong shape is nothing that one sample has
    parts: list[np.ndarray | None] = []
    for sample in raw:
        try:
            parts.append(transform.apply(sample[None]))
        except TransformError:
            parts.append(None)
    shape = next((part.shape for part in parts if part is not None), None)
    if shape is None:
        return transform.apply(raw)  # every sample is at fault: say so
    return np.concatenate([np.full(shape, np.nan, np.float32) if part is None else part for part in parts])
