"""Clients that train as devices do: by the bundle's training signature in LiteRT, one after the other."""

from collections.abc import Mapping

import numpy as np

from contract import tensors
from contract.bundle import Bundle
from contract.tensors import Arrays
from edge_agent.training import TrainingRuntime
from simulations.errors import SimulationError
from simulations.run import Progress, Samples
from simulations.virtual_grid import VirtualClient, VirtualGrid, measure


class DeviceLoop:
    """`run.Learning` by the very loop that an agent runs."""

    def __init__(self, bundle: Bundle, train: Samples, test: Samples) -> None:
        """Use a bundle's training part; its weights are where round 1 starts.

        Raises:
            SimulationError: a bundle that cannot train.
            ContractError: samples that do not fit the transform.
        """
        if bundle.manifest.training is None:
            raise SimulationError(f"the bundle of {bundle.manifest.model} has no training part; build one that has")
        self._runtime = TrainingRuntime(bundle.files["training"], bundle.manifest.training)
        self._x, self._test_x = bundle.transform.apply(train.x), bundle.transform.apply(test.x)
        self._test_y = test.y
        self.labels, self.groups = train.y, train.groups
        self.start: Arrays = tensors.load(bundle.files["weights"])
        self.plan: Mapping[str, str | int] = {"path": "the agent's loop", "chunk": 1, "threads": 1}

    def grid(self, rows: Mapping[str, np.ndarray], *, seed: int, fold: bool, progress: Progress) -> VirtualGrid:
        """Every client replies for itself, whatever `fold` allows."""
        del fold
        clients = {name: VirtualClient(self._x[each], self.labels[each]) for name, each in rows.items()}
        return VirtualGrid(clients, self._runtime, like=self.start, seed=seed, progress=progress)

    def measure(self, weights: Arrays) -> dict[str, float]:
        """Loss and accuracy on the test set."""
        return measure(self._runtime, weights, self._test_x, self._test_y)
