"""The smallest models with the shapes that the agent expects: softmax regression on 4x4 images, three classes.

The `.tflite` files beside this module were made by running it (`python tests/fakes/agent_models.py`, needs
tensorflow), so that the agent's tests need LiteRT alone.
"""

from pathlib import Path

import numpy as np

from contract.training import TensorSpec, TrainingSpec

FOLDER = Path(__file__).parent / "agent_models"
SHAPE = (4, 4, 1)
CLASSES = 3
SPEC = TrainingSpec(
    batch=8,
    weights=[TensorSpec("dense/kernel", [16, CLASSES]), TensorSpec("dense/bias", [CLASSES])],
    state=[],
)


def weights(scale: float = 3.0) -> dict[str, np.ndarray]:
    """Weights that sort images by which third of the flattened pixels is brightest."""
    kernel = np.full((16, CLASSES), -scale / 2, np.float32)
    for index in range(15):
        kernel[index, index // 5] = scale
    return {"dense/kernel": kernel, "dense/bias": np.zeros(CLASSES, np.float32)}


def samples(count: int, seed: int, *, classes: tuple[int, ...] = (0, 1, 2)) -> tuple[np.ndarray, np.ndarray]:
    """Raw uint8 images 0..16 of shape (count, 4, 4, 1) and their labels, which `weights` recognises."""
    random = np.random.default_rng(seed)
    y = random.choice(classes, count)
    x = random.integers(0, 6, (count, 16))
    for row, label in enumerate(y):
        x[row, 5 * label : 5 * label + 5] += 9
    return x.reshape(count, *SHAPE).astype(np.uint8), y.astype(np.int64)


def read(name: str) -> bytes:
    """A stored model: `float`, `int8`, `dynamic` or `training`."""
    return (FOLDER / f"{name}.tflite").read_bytes()


def build() -> dict[str, bytes]:
    """Make the models with TensorFlow: float and int8 inference, and the training signature with its own gradients."""
    import tensorflow as tf

    kernel, bias = weights().values()

    @tf.function(input_signature=[tf.TensorSpec((1, *SHAPE), tf.float32, name="x")])
    def serve(x):
        return {"logits": tf.matmul(tf.reshape(x, (1, 16)), kernel) + bias}

    module = tf.Module()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], module)
    made = {"float": converter.convert()}
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    images = samples(64, 0)[0].astype(np.float32) / 16
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    made["int8"] = converter.convert()
    made["training"] = _training(tf)
    made["dynamic"] = _dynamic(tf)
    return made


def _dynamic(tf) -> bytes:
    """Weights in int8, activations in float: for that they must be a thousand or more, so there is a hidden layer."""
    spread = np.random.default_rng(0).normal(size=(16, 80)).astype(np.float32)
    kernel = np.linalg.pinv(spread) @ weights()["dense/kernel"]

    @tf.function(input_signature=[tf.TensorSpec((1, *SHAPE), tf.float32, name="x")])
    def serve(x):
        return {"logits": tf.matmul(tf.matmul(tf.reshape(x, (1, 16)), spread), kernel)}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([serve.get_concrete_function()], tf.Module())
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return converter.convert()


def _training(tf) -> bytes:
    f32, batch = tf.float32, SPEC.batch
    shapes = [tensor.shape for tensor in SPEC.weights]
    named = {f"{letter}{i:03d}": tf.TensorSpec(shape, f32) for letter in "wmag" for i, shape in enumerate(shapes)}
    scalars = {name: tf.TensorSpec([], f32) for name in ("lr", "momentum", "mu")}

    @tf.function
    def train(x, y, mask, *, lr, momentum, mu, **t):
        flat = tf.reshape(x, (batch, 16))
        logits = tf.matmul(flat, t["w000"]) + t["w001"]
        probability = tf.nn.softmax(logits)
        label = tf.one_hot(y, CLASSES)
        counted = tf.maximum(tf.reduce_sum(mask), 1.0)
        error = (probability - label) * mask[:, None] / counted
        gradients = [tf.matmul(flat, error, transpose_a=True), tf.reduce_sum(error, 0)]
        log_likelihood = tf.reduce_sum(tf.nn.log_softmax(logits) * label, 1)
        right = tf.cast(tf.equal(tf.argmax(logits, 1, tf.int32), y), f32)
        out = {"loss": -tf.reduce_sum(log_likelihood * mask) / counted, "correct": tf.reduce_sum(right * mask)}
        for i, gradient in enumerate(gradients):
            w, m, a, g = (t[f"{letter}{i:03d}"] for letter in "wmag")
            out[f"m{i:03d}"] = momentum * m + gradient + mu * (w - a) + g
            out[f"w{i:03d}"] = w - lr * out[f"m{i:03d}"]
        return out

    @tf.function
    def infer(x, w000, w001):
        return {"logits": tf.matmul(tf.reshape(x, (batch, 16)), w000) + w001}

    x = tf.TensorSpec((batch, *SHAPE), f32)
    y, mask = tf.TensorSpec([batch], tf.int32), tf.TensorSpec([batch], f32)
    import tempfile

    module = tf.Module()
    module.train, module.infer = train, infer
    with tempfile.TemporaryDirectory() as folder:
        signatures = {
            "train": train.get_concrete_function(x=x, y=y, mask=mask, **scalars, **named),
            "infer": infer.get_concrete_function(x=x, w000=named["w000"], w001=named["w001"]),
        }
        tf.saved_model.save(module, folder, signatures=signatures)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, content in build().items():
        (FOLDER / f"{name}.tflite").write_bytes(content)
