"""The models of the inference benchmark, int8 in and out, made by TensorFlow in a process of its own.

`python -m benchmarks.inference_models FOLDER` writes `readings.tflite`, a small network of 16 features;
`fashion.tflite`, two convolutions of 32 and 64 filters of 5x5 and a dense layer of 128, trained on Fashion-MNIST for
some hundred steps, with its accuracy on test images in `fashion.txt`; and `fashion3.tflite`, the same with filters of
3x3 and without training, which takes half the time.
"""

import gzip
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

FEATURES, STEPS, BATCH = 16, 250, 128


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


def _network(keras: Any, kernel: int) -> Any:
    layers = keras.layers
    convolutions = [
        part
        for filters in (32, 64)
        for part in (layers.Conv2D(filters, kernel, padding="same", activation="relu"), layers.MaxPooling2D())
    ]
    head = [layers.Flatten(), layers.Dense(128, activation="relu"), layers.Dense(10)]
    return keras.Sequential([keras.Input((28, 28, 1)), *convolutions, *head])


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
    train, test = images("train"), [part[:2000] for part in images("t10k")]
    network = _network(keras, 5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile("adam", loss=loss, metrics=["accuracy"])
    seen = slice(STEPS * BATCH)
    network.fit(train[0][seen] / np.float32(255), train[1][seen], batch_size=BATCH, verbose=0)
    accuracy = network.evaluate(test[0] / np.float32(255), test[1], verbose=0)[1]
    (folder / "fashion.txt").write_text(f"{accuracy:.3f}")
    shown = train[0][:200] / np.float32(255)
    (folder / "fashion3.tflite").write_bytes(_int8(tf, _network(keras, 3), shown))
    (folder / "fashion.tflite").write_bytes(_int8(tf, network, shown))


if __name__ == "__main__":
    main()
