"""A contender of the simulation benchmark: pfl-research, in one process or, under torchrun, in two.

Runs in an environment of its own, as `python -m benchmarks.simulation_pfl WORKLOAD THREADS`.
"""

import os
import sys
import time
from types import MethodType
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.simulation_workloads import WORKLOADS, Population, Workload, await_turn, tell


def _loss(self: Any, x: torch.Tensor, y: torch.Tensor, eval: bool = False) -> torch.Tensor:  # noqa: A002 - their name
    return torch.nn.functional.cross_entropy(self(x), y)


def _metrics(self: Any, x: torch.Tensor, y: torch.Tensor, eval: bool = True) -> dict[str, Weighted]:  # noqa: A002
    return {"loss": Weighted(0.0, 1)}


class _Turns(TrainingProcessCallback):
    """Between rounds every process waits for its turn."""

    began = 0.0

    def on_train_begin(self, *, model: Any) -> Metrics:
        """Wait for the first."""
        self._wait()
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        """Say how long it took, and wait for the next."""
        if os.environ.get("RANK", "0") == "0":
            tell(time.perf_counter() - self.began)
        self._wait()
        return False, Metrics()

    def _wait(self) -> None:
        if os.environ.get("RANK", "0") == "0":
            await_turn()
        if "RANK" in os.environ:
            torch.distributed.barrier()
        self.began = time.perf_counter()


def _train(workload: Workload) -> None:
    population = Population(workload)
    module = population.model
    module.loss, module.metrics = MethodType(_loss, module), MethodType(_metrics, module)

    def user(number: int) -> Dataset:
        begin, end = population.rows(number)
        return Dataset(raw_data=[population.x[begin:end], population.y[begin:end]], user_id=str(number))

    random = np.random.default_rng(5)
    users = FederatedDataset(user, lambda: int(random.integers(workload.population)))
    central = torch.optim.SGD(module.parameters(), 1.0)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=10_000,  # the benchmark ends it
            evaluation_frequency=10**6,
            train_cohort_size=workload.cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]),
        model=PyTorchModel(model=module, local_optimizer_create=torch.optim.SGD, central_optimizer=central),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=workload.rate, local_batch_size=workload.batch
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=100),
        callbacks=[_Turns()],
    )


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    _train(WORKLOADS[sys.argv[1]])
