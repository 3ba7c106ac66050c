"""Training of models that are being compressed: the same weights in tf_keras, and a loop that every stage shares.

tensorflow-model-optimization knows only tf_keras, so the task's builder is called with that and given the weights.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cloud.learning.backend import quiet_stderr
from compression.errors import UnsupportedLayerError
from compression.stage import Workbench, Workpiece

BATCH = 64


def tf_keras_model(piece: Workpiece, bench: Workbench) -> Any:
    """The model of a workpiece in tf_keras: the task's builder with its weights, unless it is one already.

    Raises:
        UnsupportedLayerError: tf_keras cannot build it, or builds other weights.
    """
    import tf_keras

    if isinstance(piece.model, tf_keras.Model):
        return piece.model
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(bench.seed)
    try:
        model = bench.task.build_model(tf_keras)
    except (AttributeError, TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            f"{bench.task.name}: tf_keras cannot build the model ({error}); use stages without training"
        ) from error
    variables = [*model.trainable_variables, *model.non_trainable_variables]
    shapes, wanted = [tuple(v.shape) for v in variables], [array.shape for array in bench.weights.values()]
    if shapes != wanted:
        raise UnsupportedLayerError(f"{bench.task.name}: tf_keras builds weights {shapes}, the version has {wanted}")
    for variable, array in zip(variables, bench.weights.values(), strict=True):
        variable.assign(array)
    return model


def fit(
    model: Any,
    bench: Workbench,
    *,
    epochs: int,
    learning_rate: float,
    callbacks: Sequence[Any] = (),
    batch: int = BATCH,
) -> None:
    """Adam on the cross-entropy of the training samples, shuffled by the bench's seed.

    Args:
        model: tf_keras, compiled anew.
        bench: gives samples and seed.
        epochs, learning_rate: passes over the samples, step.
        callbacks: of tf_keras.
        batch: samples in a step.
    """
    import tf_keras

    tf_keras.utils.set_random_seed(bench.seed)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(learning_rate), loss)
    model.fit(bench.train.x, bench.train.y, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))


def copy(model: Any) -> Any:
    """A tf_keras model of its own with the same weights: tfmot changes the layers that it is given."""
    import tf_keras

    made = tf_keras.models.clone_model(model)
    made.set_weights(model.get_weights())
    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what tf_keras and tfmot say of old names of their own."""
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def sparsity(model: Any) -> float:
    """Part of zeros in the kernels (weights of two or more dimensions)."""
    kernels = [np.asarray(value) for value in model.get_weights() if value.ndim >= 2]
    return float(sum((kernel == 0).sum() for kernel in kernels) / max(1, sum(kernel.size for kernel in kernels)))
