"""Prune, then cluster: the same size on the device, but far fewer bytes on the way to it.

tensorflow-model-optimization knows only tf_keras, so the task's builder is called with that and given the weights.
Magnitude pruning on a polynomial schedule (Zhu & Gupta 2017, arXiv:1710.01878), then weight clustering that leaves the
zeros alone (Han et al. 2016, arXiv:1510.00149, section 3).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud.learning.backend import quiet_stderr
from cloud.learning.task import Task
from compression.errors import UnsupportedLayerError
from contract.tensors import Arrays

BATCH = 64


@dataclass(frozen=True)
class PrunePlan:
    """How hard to prune and how long to heal.

    Attributes:
        sparsity: part of each kernel's weights that becomes zero.
        clusters: different values that each kernel keeps.
        prune_epochs, cluster_epochs: passes over the training samples at `learning_rate` (Adam).
    """

    sparsity: float = 0.6
    clusters: int = 16
    prune_epochs: int = 8
    cluster_epochs: int = 3
    learning_rate: float = 1e-3
    seed: int = 0


def prune_and_cluster(
    task: Task, arrays: Arrays, x: np.ndarray, y: np.ndarray, plan: PrunePlan, *, on_stage: Callable[[str], None]
) -> Any:
    """A tf_keras model with sparse, clustered kernels.

    Args:
        task: builds the model.
        arrays: weights to start from, in the order of `cloud.learning.weights`.
        x: model input of the training samples, float32.
        y: their classes.
        on_stage: called when a stage begins, with a phrase for a person.

    Raises:
        UnsupportedLayerError: the model is not the same in tf_keras, or tfmot cannot prune one of its layers.
    """
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # tf_keras and tfmot use old names of their own
        stages = _Stages(x, y, plan)
        model = stages.build(task, arrays)
        on_stage(f"pruning to {plan.sparsity:.0%} zeros")
        sparse = stages.prune(model)
        on_stage(f"clustering to {plan.clusters} values")
        return stages.cluster(sparse)


class _Stages:
    """The libraries, the data and the plan that every stage needs."""

    def __init__(self, x: np.ndarray, y: np.ndarray, plan: PrunePlan) -> None:
        import tensorflow_model_optimization as tfmot
        import tf_keras

        self._keras, self._tfmot = tf_keras, tfmot
        self._x, self._y, self._plan = x, y, plan

    def build(self, task: Task, arrays: Arrays) -> Any:
        self._keras.backend.clear_session()
        self._keras.utils.set_random_seed(self._plan.seed)
        try:
            model = task.build_model(self._keras)
        except (AttributeError, TypeError, ValueError) as error:
            raise UnsupportedLayerError(
                f"{task.name}: tf_keras cannot build the model ({error}); skip pruning"
            ) from error
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        shapes, wanted = [tuple(v.shape) for v in variables], [array.shape for array in arrays.values()]
        if shapes != wanted:
            raise UnsupportedLayerError(f"{task.name}: tf_keras builds weights {shapes}, the version has {wanted}")
        for variable, array in zip(variables, arrays.values(), strict=True):
            variable.assign(array)
        return model

    def prune(self, model: Any) -> Any:
        sparsity, plan = self._tfmot.sparsity.keras, self._plan
        steps = plan.prune_epochs * -(-len(self._x) // BATCH)
        schedule = sparsity.PolynomialDecay(0.0, plan.sparsity, 0, max(1, steps // 2), frequency=5)
        try:
            wrapped = sparsity.prune_low_magnitude(model, pruning_schedule=schedule)
        except ValueError as error:
            raise UnsupportedLayerError(f"tfmot cannot prune the model: {error}") from error
        self._fit(wrapped, plan.prune_epochs, plan.learning_rate, [sparsity.UpdatePruningStep()])
        return sparsity.strip_pruning(wrapped)

    def cluster(self, sparse: Any) -> Any:
        from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

        copy = self._keras.models.clone_model(sparse)  # cluster_weights changes the layers that it is given
        copy.set_weights(sparse.get_weights())
        clustering = self._tfmot.clustering.keras
        wrapped = cluster.cluster_weights(
            copy,
            number_of_clusters=self._plan.clusters,
            cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
            preserve_sparsity=True,
        )
        self._fit(wrapped, self._plan.cluster_epochs, self._plan.learning_rate / 3, [])
        return clustering.strip_clustering(wrapped)

    def _fit(self, model: Any, epochs: int, learning_rate: float, callbacks: list[Any]) -> None:
        loss = self._keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(self._keras.optimizers.Adam(learning_rate), loss)
        model.fit(self._x, self._y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=callbacks)
