"""Training of models that are being compressed: the same weights in tf_keras, and a loop that every stage shares.

tensorflow-model-optimization knows only tf_keras, so the task's builder is called with that and given the weights.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from cloud.learning.backend import quiet_stderr
from compression import checks
from compression.errors import StageError, UnsupportedLayerError
from compression.lanes import torch_lane
from compression.stage import Workbench, Workpiece

BATCH = 64


def tf_keras_model(piece: Workpiece, bench: Workbench) -> Any:
    """The model of a workpiece in tf_keras: the task's builder with its weights, unless it is one already.

    Names of layers and random draws begin anew, so that a stage does not depend on what ran before in this process.

    Raises:
        UnsupportedLayerError: tf_keras cannot build it, or builds other weights.
    """
    torch_lane.refuse(bench.task, "training-aware compression")
    import tf_keras

    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(bench.seed)
    if isinstance(piece.model, tf_keras.Model):
        return piece.model
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
    what: str = "training",
    *,
    epochs: int,
    learning_rate: float,
    callbacks: Sequence[Any] = (),
    batch: int = BATCH,
) -> None:
    """Adam on the cross-entropy of the training samples; its step falls to nothing by half a cosine.

    Args:
        model: tf_keras, compiled anew and trained in place.
        bench: gives samples, and the seed of shuffles and of what the model draws.
        what: is done, told before each epoch.
        epochs, learning_rate: passes over the samples, first step.
        callbacks: of tf_keras.
        batch: samples in a step.

    Raises:
        RecipeError: samples without classes, or with classes that the model does not give.
        StageError: the loss is no number any more.
    """
    import tf_keras

    checks.labels(bench.train.x, bench.train.y, int(model.output_shape[-1]))
    tf_keras.utils.set_random_seed(bench.seed)
    steps = epochs * -(-len(bench.train.x) // batch)
    rate = tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    told = tf_keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, _logs: bench.on_stage(f"{what}, epoch {epoch + 1} of {epochs}")
    )
    history = model.fit(
        bench.train.x, bench.train.y, batch_size=batch, epochs=epochs, verbose=0, callbacks=[*callbacks, told]
    )
    if not np.isfinite(history.history["loss"][-1]):
        raise StageError(f"{what}: the loss became {history.history['loss'][-1]}; lower learning_rate")


def imitate(
    student: Any,
    soft: tuple[np.ndarray, np.ndarray],
    hard: tuple[np.ndarray, np.ndarray],
    *,
    temperature: float,
    alpha: float,
    steps: int,
    learning_rate: float,
    seed: int,
    batch: int = BATCH,
) -> None:
    """Adam, its step falling by a cosine, on alpha CE(hard) + (1 - alpha) T^2 KL(teacher / T, student / T).

    Each step takes one batch from either pool; a pool's order depends on its size and the seed alone, so that a control
    arm (alpha 1) sees the same labelled batches. See Hinton et al. 2015, arXiv:1503.02531, section 2.

    Args:
        student: tf_keras, gives logits; trained in place.
        soft: model input and the teacher's logits (n, classes); unused at alpha 1.
        hard: model input and classes (n,); unused at alpha 0.
        temperature: T of both softmaxes.
        alpha: weight of the classes, 0 to 1.
        steps, learning_rate: of the optimiser.
        seed: of orders, and of what the student draws.
        batch: samples of either pool in a step.
    """
    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    optimizer = tf_keras.optimizers.Adam(tf_keras.optimizers.schedules.CosineDecay(learning_rate, steps))
    soft_order, hard_order = (_batches(len(pool[0]), steps, batch, seed) for pool in (soft, hard))

    @tf.function(reduce_retracing=True)
    def step(soft_x: Any, logits: Any, hard_x: Any, classes: Any) -> None:
        with tf.GradientTape() as tape:
            made = student(tf.concat([soft_x, hard_x], axis=0), training=True)  # one pass: BatchNorm sees both
            loss = tf.constant(0.0)
            if alpha < 1:
                cooled = made[: len(soft_x)] / temperature
                apart = tf.nn.softmax_cross_entropy_with_logits(tf.nn.softmax(logits / temperature), cooled)
                loss += (1 - alpha) * temperature**2 * tf.reduce_mean(apart)  # KL up to the teacher's entropy
            if alpha > 0:
                wrong = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, made[len(made) - len(hard_x) :])
                loss += alpha * tf.reduce_mean(wrong)
        weights = student.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    for mine, theirs in zip(soft_order, hard_order, strict=True):
        of_teacher, of_people = mine if alpha < 1 else mine[:0], theirs if alpha > 0 else theirs[:0]
        step(soft[0][of_teacher], soft[1][of_teacher], hard[0][of_people], hard[1][of_people])


def _batches(samples: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Indices (steps, batch): one shuffled pass over the samples after the other."""
    rng = np.random.default_rng(seed)
    passes = -(-steps * batch // samples)
    return np.concatenate([rng.permutation(samples) for _ in range(passes)])[: steps * batch].reshape(steps, batch)


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


def most_values(model: Any) -> int:
    """Different values in the kernel that has the most of them."""
    return max((len(np.unique(value)) for value in model.get_weights() if value.ndim >= 2), default=0)
