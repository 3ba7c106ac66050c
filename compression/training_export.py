"""A Keras 3 model as a stateless training `.tflite` of builtin operations: `contract.training` says how it is called.

The file holds the architecture alone; weights, momentum and state go in and come out, so that one small file serves
every version of a model and any optimiser state stays with the caller.
"""

import contextlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from cloud.learning import weights
from cloud.learning.backend import quiet_stderr
from compression import gradients
from compression.errors import ConversionError, UnsupportedLayerError
from contract import training
from contract.training import ADAM_BETA2, ADAM_EPSILON, Optimizer, TensorSpec, TrainingSpec

Tensor = Any
BATCH = 32
_RANDOM = "its random numbers would differ from device to device; leave it out, or train this model in the cloud alone"


def export(
    model: Any, *, batch: int = BATCH, optimizers: Sequence[Optimizer] = ("sgd", "adam")
) -> tuple[bytes, TrainingSpec]:
    """Make the training `.tflite` of a classifier.

    The loss is the contract's cross-entropy alone: what layers add to it (regularizers) has no part in a device's step.

    Args:
        model: a built Keras 3 model, (batch, *input) to logits (batch, classes).
        batch: samples in one call.
        optimizers: that the file shall have a signature for.

    Raises:
        UnsupportedLayerError: a layer whose gradient LiteRT cannot compute; the message names it. Or all are frozen.
        ConversionError: the converter found an operation that is not builtin.
    """
    check_layers(model)
    spec = training_spec(model, batch, optimizers)
    module = tf.Module()
    # Without autograph, whose errors are tracebacks: models are traced as they are.
    module.infer = tf.function(_infer(model, spec), input_signature=_infer_signature(model, spec), autograph=False)
    signatures = {training.INFER: module.infer.get_concrete_function()}
    for optimizer in spec.optimizers:
        signature = train_signature(model, spec, optimizer)
        function = tf.function(_train(model, spec, optimizer), input_signature=signature, autograph=False)
        setattr(module, training.SIGNATURES[optimizer], function)
        try:
            signatures[training.SIGNATURES[optimizer]] = function.get_concrete_function()
        except UnsupportedLayerError as error:  # of a gradient, which knows its operation
            operation, _, reason = str(error).partition(": ")
            raise UnsupportedLayerError(f"{_layer_of(model, operation)}: {reason}") from error
        except (ValueError, TypeError, LookupError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UnsupportedLayerError(f"{model.name}: its training step cannot be traced: {reason}") from error
    # With custom gradients saved, the loader would trace the overridden operations again and fail.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    with tempfile.TemporaryDirectory() as folder, quiet_stderr():
        tf.saved_model.save(module, folder, signatures=signatures, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert()), spec
        except Exception as error:
            raise _refusal(model, signatures, error) from error


def training_spec(model: Any, batch: int = BATCH, optimizers: Sequence[Optimizer] = ("sgd", "adam")) -> TrainingSpec:
    """Names and shapes of a model's weights in the signature's order. Frozen layers' weights are state."""
    return TrainingSpec(
        batch=batch,
        weights=_specs(weights.trainable(model)),
        state=_specs(weights.state(model)),
        optimizers=list(optimizers),
        decay=True,
    )


def _specs(variables: Sequence[Any]) -> list[TensorSpec]:
    return [TensorSpec(variable.path, [int(size) for size in variable.shape]) for variable in variables]


def check_layers(model: Any) -> None:
    """Refuse what is known not to work on a device before anything is traced.

    Raises:
        UnsupportedLayerError: naming the layer, why, and what to do.
    """
    if not model.trainable_variables:
        raise UnsupportedLayerError(f"every layer of {model.name!r} is frozen: there is nothing to train on a device")
    for layer in model._flatten_layers(include_self=False):  # noqa: SLF001 Keras has no public walk over nested layers
        kind = type(layer).__name__
        reason = ""
        if _draws(layer):
            reason = _RANDOM
        elif kind in {"LSTM", "GRU", "SimpleRNN"} and not layer.unroll:
            reason = "its loop has no builtin gradient; give it unroll=True"
        elif getattr(layer, "data_format", "channels_last") == "channels_first":
            reason = "channels come first; devices take them last"
        elif "Conv" in kind and getattr(layer, "groups", 1) != 1:
            reason = "convolutions in groups have no builtin gradient; use groups=1"
        elif getattr(layer, "depth_multiplier", 1) not in {1, None}:
            reason = f"depth multiplier {layer.depth_multiplier} has no builtin gradient; use 1"
        elif "Pooling" in kind and getattr(layer, "strides", None) not in {None, getattr(layer, "pool_size", None)}:
            reason = "its windows overlap; use strides equal to the pool size"
        elif getattr(layer, "activation", None) is keras.activations.gelu:
            reason = "exact GELU has no builtin gradient; use gelu with approximate=True, relu or silu"
        if reason:
            raise UnsupportedLayerError(f"layer {layer.name!r} ({kind}) cannot be trained on a device: {reason}")


def _draws(layer: Any) -> bool:
    """Whether a layer draws random numbers while it trains; recurrent layers have a seed even without dropout."""
    inner = next(iter(layer._flatten_layers(include_self=False)), None)  # noqa: SLF001 they are looked at themselves
    if inner is not None or not any(weights.is_seed(variable) for variable in layer.variables):
        return False
    rates = [getattr(layer, name, None) for name in ("rate", "dropout", "recurrent_dropout")]
    known = [rate for rate in rates if rate is not None]
    return any(known) or not known


def train_signature(model: Any, spec: TrainingSpec, optimizer: Optimizer) -> list[Any]:
    """Tensor specs of a signature's inputs, in the order in which the traced function takes them."""
    letters = f"{training.moments(optimizer)}ag"
    groups = [("w", spec.weights), ("s", spec.state), *((letter, spec.weights) for letter in letters)]
    inputs = [entry for letter, group in groups for entry in _group_signature(letter, group)]
    sample = [
        tf.TensorSpec([spec.batch, *model.input_shape[1:]], tf.float32, name="x"),
        tf.TensorSpec([spec.batch], tf.int32, name="y"),
        tf.TensorSpec([spec.batch], tf.float32, name="mask"),
    ]
    scalars = training.scalars(optimizer, spec)
    return [*inputs, *sample, *(tf.TensorSpec([], tf.float32, name=name) for name in scalars)]


def _infer_signature(model: Any, spec: TrainingSpec) -> list[Any]:
    inputs = [*_group_signature("w", spec.weights), *_group_signature("s", spec.state)]
    return [*inputs, tf.TensorSpec([spec.batch, *model.input_shape[1:]], tf.float32, name="x")]


def _group_signature(letter: str, group: Sequence[TensorSpec]) -> list[Any]:
    names = training.names(letter, len(group))
    return [tf.TensorSpec(entry.shape, tf.float32, name=name) for name, entry in zip(names, group, strict=True)]


def _train(model: Any, spec: TrainingSpec, optimizer: Optimizer, *, builtin: bool = True) -> Any:
    """The function behind a signature; with `builtin=False` by TensorFlow's own gradients (the reference in tests)."""
    count, letters = len(spec.weights), training.moments(optimizer)
    signature = [entry.name for entry in train_signature(model, spec, optimizer)]

    def train(*tensors: Tensor) -> dict[str, Tensor]:
        w, s, *moments, a, g = _split(tensors, [count, len(spec.state), *[count] * (len(letters) + 2)])
        named = dict(zip(signature, tensors, strict=True))
        x, y, mask, mu = (named[name] for name in ("x", "y", "mask", "mu"))
        samples = tf.maximum(tf.reduce_sum(mask), 1.0)
        with gradients.overrides() if builtin else contextlib.nullcontext(), _masked_moments(mask):
            logits, new_state = _call(model, w, s, x, training=True)
        target = tf.one_hot(y, logits.shape[-1])
        loss = -tf.reduce_sum(tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=1) * mask) / samples
        slopes = tf.gradients(loss, w, unconnected_gradients=tf.UnconnectedGradients.ZERO)
        slopes = [d + mu * (wi - ai) + gi for d, wi, ai, gi in zip(slopes, w, a, g, strict=True)]
        right = tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y), tf.float32)
        return {
            **(_sgd if optimizer == "sgd" else _adam)(named, w, moments, slopes),
            **{name: new for name, new in _named("s", new_state).items() if new is not named[name]},
            "loss": loss,
            "correct": tf.reduce_sum(right * mask),
        }

    return train


def _sgd(named: dict[str, Tensor], w: list[Tensor], moments: list[list[Tensor]], slopes: list[Tensor]) -> Any:
    velocity = [named["momentum"] * m + d for m, d in zip(moments[0], slopes, strict=True)]
    lr, kept = named["lr"], 1.0 - named["lr"] * named["decay"]
    return {**_named("w", [kept * wi - lr * v for wi, v in zip(w, velocity, strict=True)]), **_named("m", velocity)}


def _adam(named: dict[str, Tensor], w: list[Tensor], moments: list[list[Tensor]], slopes: list[Tensor]) -> Any:
    beta, lr, step = named["momentum"], named["lr"], named["step"] + 1.0
    first = [beta * m + (1.0 - beta) * d for m, d in zip(moments[0], slopes, strict=True)]
    second = [ADAM_BETA2 * v + (1.0 - ADAM_BETA2) * d * d for v, d in zip(moments[1], slopes, strict=True)]
    rate = lr * tf.sqrt(1.0 - tf.pow(ADAM_BETA2, step)) / (1.0 - tf.pow(beta, step))
    kept = 1.0 - lr * named["decay"]
    new = [kept * wi - rate * m / (tf.sqrt(v) + ADAM_EPSILON) for wi, m, v in zip(w, first, second, strict=True)]
    return {**_named("w", new), **_named("m", first), **_named("v", second), "step": step}


def _infer(model: Any, spec: TrainingSpec) -> Any:
    def infer(*tensors: Tensor) -> dict[str, Tensor]:
        w, s = _split(tensors, [len(spec.weights), len(spec.state)])
        with gradients.products():
            return {"logits": _call(model, w, s, tensors[-1], training=False)[0]}

    return infer


def _call(model: Any, w: list[Tensor], s: list[Tensor], x: Tensor, *, training: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits and new state; seeds, from which nothing is drawn, go in as zeros and stay out of the signature."""
    given = iter(s)
    fixed = [tf.zeros(v.shape, v.dtype) if weights.is_seed(v) else next(given) for v in model.non_trainable_variables]
    logits, kept = model.stateless_call(w, fixed, x, training=training)
    new = [value for v, value in zip(model.non_trainable_variables, kept, strict=True) if not weights.is_seed(v)]
    return logits, new


def _split(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    groups, start = [], 0
    for size in sizes:
        groups.append(list(tensors[start : start + size]))
        start += size
    return groups


def _named(letter: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(training.names(letter, len(tensors)), tensors, strict=True))


@contextlib.contextmanager
def _masked_moments(mask: Tensor) -> Iterator[None]:
    """BatchNorm must not see padding: while tracing, its batch moments are those of the counted samples."""
    layer = keras.layers.BatchNormalization
    original = layer._moments  # noqa: SLF001 the one place where Keras computes them

    def moments(self: Any, inputs: Tensor, _mask: Tensor) -> tuple[Tensor, Tensor]:
        axes = list(self._reduction_axes)
        counted = tf.reshape(mask, [-1] + [1] * (inputs.shape.rank - 1))
        entries = 1
        for axis in axes[1:]:
            entries *= inputs.shape[axis]
        total = tf.maximum(tf.reduce_sum(mask), 1.0) * float(entries)
        mean = tf.reduce_sum(inputs * counted, axes, keepdims=True) / total
        variance = tf.reduce_sum(tf.square(inputs - mean) * counted, axes) / total
        return tf.reshape(mean, variance.shape), variance

    layer._moments = moments  # noqa: SLF001 put back below
    try:
        yield
    finally:
        layer._moments = original  # noqa: SLF001


def _refusal(model: Any, signatures: dict[str, Any], error: Exception) -> Exception:
    """What the converter's pages of MLIR come down to: which layer has which operation that no device has."""
    operations = sorted(set(re.findall(r"tf\.([A-Z]\w+)", str(error))))
    for function in signatures.values():
        for operation in function.graph.get_operations():
            if operation.type in operations:
                layer = _layer_of(model, operation.name)
                return UnsupportedLayerError(f"{layer} cannot be trained on a device: no builtin tf.{operation.type}")
    reason = " ".join(str(error).split())[:300]
    return ConversionError(f"the converter refused the training step of {model.name}: {reason}")


def _layer_of(model: Any, operation: str) -> str:
    """The layer whose name stands in an operation's, innermost first."""
    kinds = {layer.name: type(layer).__name__ for layer in model._flatten_layers(include_self=False)}  # noqa: SLF001
    scopes = [re.sub(r"_\d+$", "", scope) if scope not in kinds else scope for scope in operation.split("/")]
    name = next((scope for scope in reversed(scopes) if scope in kinds), None)
    return f"operation {operation}" if name is None else f"layer {name!r} ({kinds[name]})"
