"""A Keras model's weights as an ordered list of named arrays, and back.

The order is the training signature's: what is trained in Keras' order, then state that is not (BatchNorm moments).
Names are the variables' paths, for example `digits/edges/kernel`. Random seeds are neither: they stay in the model.
"""

import math
from typing import Any

import numpy as np

from cloud.errors import TaskError
from cloud.learning.task import Task
from contract.tensors import Arrays, check_like


def build(task: Task, *, seed: int) -> Any:
    """A fresh model of a task; the same seed gives the same weights and the same names.

    Needs Keras' TensorFlow backend to be chosen before. Everything that Keras held in this process is forgotten.

    Raises:
        TaskError: not a Keras model with one input and one output of logits for each label.
    """
    import keras

    keras.utils.clear_session()
    keras.utils.set_random_seed(seed)
    model = task.build_model(keras)
    if not isinstance(model, keras.Model) or not model.built:
        raise TaskError(f"{task.name}: build_model must give a built Keras model; begin it with keras.Input(shape)")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise TaskError(f"{task.name}: the model needs one input and one output")
    if tuple(model.output_shape[1:]) != (len(task.labels),):
        raise TaskError(f"{task.name}: the model gives {model.output_shape[1:]}, expected {len(task.labels)} logits")
    return model


def trainable(model: Any) -> list[Any]:
    """Variables that are trained, in Keras' order."""
    return list(model.trainable_variables)


def state(model: Any) -> list[Any]:
    """Variables that are not trained but belong to the model, in Keras' order; no random seeds."""
    return [variable for variable in model.non_trainable_variables if not is_seed(variable)]


def is_seed(variable: Any) -> bool:
    """Whether a variable is the state of a random generator (Dropout's), which no weight file holds."""
    return "seed_generator" in variable.path or not str(variable.dtype).startswith("float")


def get(model: Any) -> Arrays:
    """Weights of a model, float32.

    Raises:
        TaskError: two variables have one path, so that no name could tell them apart.
    """
    arrays: Arrays = {}
    for variable in [*trainable(model), *state(model)]:
        if variable.path in arrays:
            raise TaskError(f"two weights are named {variable.path}; give the layers different names")
        arrays[variable.path] = np.asarray(variable.numpy(), np.float32)
    return arrays


def put(model: Any, arrays: Arrays) -> None:
    """Give a model these weights.

    Raises:
        TensorError: other names, another order, shapes or dtypes, or values that are not finite.
    """
    check_like(arrays, get(model))
    for variable in [*trainable(model), *state(model)]:
        variable.assign(arrays[variable.path])


def parameters(arrays: Arrays) -> int:
    """Number of entries in all arrays."""
    return sum(math.prod(array.shape) for array in arrays.values())
