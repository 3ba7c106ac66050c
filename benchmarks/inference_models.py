"""The models of the inference benchmark, int8 in and out, made by TensorFlow in a process of its own.

`python -m benchmarks.inference_models FOLDER` writes `readings.tflite`, a small network of 16 features, and
`fashion.tflite`: two convolutions of 32 and 64 filters and a dense layer of 128, 421,642 weights, trained on
Fashion-MNIST for some hundred steps; its accuracy on the test images is in `fashion.txt`.
"""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, STEPS, BATCH = 16, 400, 128


def make(folder: Path) -> None:
    """Write the models, unless they are there."""
    if not (folder / "fashion.tflite").exists():
        command = [sys.executable, "-m", "benchmarks.inference_models", str(folder)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"the models could not be made:\n{done.stderr[-2000:]}")


def readings(count: int) -> np.ndarray:
    """Raw samples of 16 sensors, float64, each on a scale of its own: shape (count, 16)."""
    random = np.random.default_rng(3)
    return random.normal(size=(count, FEATURES)) * np.geomspace(0.1, 100, FEATURES) + np.arange(FEATURES)


def images(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST: uint8 images of shape (n, 28, 28, 1), and their classes; `part` is `train` or `t10k`."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("FIELDFARE_DATA", beside)) / "fashion_mnist"
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder; FIELDFARE_DATA names the one that holds fashion_mnist")
    x = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    y = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return np.frombuffer(x, np.uint8, offset=16).reshape(-1, 28, 28, 1), np.frombuffer(y, np.uint8, offset=8)


def _int8(tf: Any, model: Any, shown: np.ndarray) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([sample[None]] for sample in shown)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def main() -> None:
    """The child."""
    import keras
    import tensorflow as tf

    folder, layers = Path(sys.argv[1]), keras.layers
    keras.utils.set_random_seed(0)
    raw = readings(500)
    x = ((raw - raw.mean(axis=0)) / raw.std(axis=0)).astype(np.float32)
    dense = [layers.Dense(44, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(4)]
    content = _int8(tf, keras.Sequential([keras.Input((FEATURES,)), *dense]), x)
    (folder / "readings.tflite").write_bytes(content)
    train, test = images("train"), images("t10k")
    convolutions = [
        part
        for filters in (32, 64)
        for part in (layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.MaxPooling2D())
    ]
    head = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    network = keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *head])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("adam", loss=loss, metrics=["accuracy"])
    seen = slice(STEPS * BATCH)
    network.fit(train[0][seen] / np.float32(255), train[1][seen], batch_size=BATCH, verbose=0)
    accuracy = network.evaluate(test[0] / np.float32(255), test[1], verbose=0)[1]
    (folder / "fashion.txt").write_text(f"{accuracy:.3f}")
    (folder / "fashion.tflite").write_bytes(_int8(tf, network, train[0][:200] / np.float32(255)))


if __name__ == "__main__":
    main()
