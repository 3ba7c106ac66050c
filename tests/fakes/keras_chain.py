"""A Keras chain of every layer that simulations know, against Keras itself; writes the largest differences as JSON.

A chain that has kernels by hand is also trained by them and by the loop.
"""

import json
import sys

import numpy as np
import torch

from cloud.learning import weights
from cloud.learning.backend import use_torch
from simulations.cohort import keras_layers
from simulations.cohort.engine import Engine
from simulations.cohort.learner import Learner
from simulations.cohort.local import Client, Local


def paths_apart(learner: Learner, x: np.ndarray) -> float:
    """Largest difference of weights after training by hand and by the loop."""
    y = np.arange(len(x)) % 3
    clients = [Client("short", np.arange(2), 2, 0.1, 1), Client("long", np.arange(2, len(x)), 1, 0.1, 2)]
    by_hand = Engine(learner, x, y, threads=1)
    assert by_hand.plan["path"] == ("convolutions" if learner.images else "dense kernels")
    loop = Engine(learner, x, y, path="one by one", threads=1)
    found, wanted = (each.train(learner.start, clients, Local(batch=2)).weights for each in (by_hand, loop))
    return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)


def main() -> None:
    use_torch()
    import keras

    layers = keras.layers
    chains = {
        "two dimensions": [
            keras.Input((9, 7, 2)),
            layers.Conv2D(4, 3, strides=2, padding="same", activation="silu"),
            layers.BatchNormalization(),
            layers.Conv2D(6, (2, 3), dilation_rate=(1, 2), padding="same", use_bias=False),
            layers.LayerNormalization(),
            layers.AveragePooling2D((2, 1)),
            layers.Dropout(0.0),
            layers.Conv2D(5, 2, activation="elu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(3),
        ],
        "one dimension": [
            keras.Input((24,)),
            layers.Reshape((12, 2)),
            layers.Conv1D(4, 5, padding="same", activation="tanh"),
            layers.MaxPooling1D(2),
            layers.Conv1D(4, 3),
            layers.Activation("sigmoid"),
            layers.AveragePooling1D(2),
            layers.Flatten(),
            layers.Dense(5),
            layers.ReLU(),
            layers.Dense(3),
        ],
        "images by hand": [
            keras.Input((72,)),
            layers.Reshape((6, 6, 2)),
            layers.Conv2D(4, (3, 5), padding="same", dilation_rate=(2, 1), activation="relu"),
            layers.MaxPooling2D((2, 1)),
            layers.Conv2D(5, 2, strides=(1, 2)),
            layers.ReLU(),
            layers.Conv2D(7, 1),
            layers.Activation("relu"),
            layers.Flatten(),
            layers.Dense(24, activation="relu"),
            layers.Dense(3),
        ],
        "dense by hand": [keras.Input((4, 3)), layers.Flatten(), layers.Dense(8, activation="relu"), layers.Dense(3)],
        "pooled": [
            keras.Input((6, 6, 1)),
            layers.Conv2D(3, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ],
    }
    told = {}
    for name, chain in chains.items():
        model = keras.Sequential(chain)
        random = np.random.default_rng(0)
        for variable in model.variables:  # moments, too, that are not what they begin with
            if not weights.is_seed(variable):
                variable.assign(variable.numpy() + random.uniform(0, 0.2, variable.shape))
        arrays = weights.get(model)
        found = keras_layers.learner(model, arrays, len(weights.trainable(model)), 3)
        x = random.standard_normal((5, *model.input_shape[1:])).astype(np.float32)
        given = [torch.from_numpy(array.copy()) for array in arrays.values()]
        differences = []
        for training in (False, True):
            wanted = model(x, training=training).detach().numpy()
            differences.append(float(np.abs(found.logits(given, torch.from_numpy(x), training).numpy() - wanted).max()))
        kept = zip(given, weights.get(model).values(), strict=True)
        differences.append(max(float(np.abs(one.numpy() - other).max()) for one, other in kept))
        if name.endswith("by hand"):
            differences.append(paths_apart(found, x))
        told[name] = differences
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main()
