"""A Keras model as an inference `.tflite` with batch size 1, in the forms that TensorFlow's converter has."""

import re
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cloud.learning.backend import quiet_stderr
from compression import checks
from compression.errors import ConversionError, UnsupportedLayerError


def to_float(model: Any) -> bytes:
    """Float32 weights and activations.

    Args:
        model: Keras 3 or tf_keras, (batch, *input) to logits (batch, classes).

    Raises:
        UnsupportedLayerError: an input without a fixed shape.
        StageError: weights that are not finite.
        ConversionError: an operation without a TFLite form.
    """
    return _convert(_converter(model), "float")


def to_float16(model: Any) -> bytes:
    """Float16 weights, computed in float32. Raises as `to_float`."""
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]
    return _convert(converter, "float16")


def to_dynamic(model: Any) -> bytes:
    """Int8 weights; activations are quantized as they come. Raises as `to_float`."""
    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    return _convert(converter, "dynamic")


def to_int8(model: Any, x: np.ndarray, *, io: Literal["int8", "float"] = "int8") -> bytes:
    """Full-integer: weights and activations are int8 (Jacob et al. 2018, arXiv:1712.05877).

    Args:
        model: as for `to_float`.
        x: model input that shows the ranges of activations, float32 (n, *input); some hundred training samples.
        io: type of input and output.

    Raises:
        RecipeError: representative samples that make no sense.
        UnsupportedLayerError, StageError, ConversionError: as for `to_float`.
    """
    converter = _calibrated(model, x)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if io == "int8":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return _convert(converter, "int8")


def to_int16x8(model: Any, x: np.ndarray) -> bytes:
    """Int8 weights and int16 activations; input and output are float. Arguments and errors as for `to_int8`."""
    converter = _calibrated(model, x)
    converter.target_spec.supported_ops = [
        tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8,
        tf.lite.OpsSet.TFLITE_BUILTINS,
    ]
    return _convert(converter, "int16x8")


def _calibrated(model: Any, x: np.ndarray) -> Any:
    shown = checks.representative(x, model.input_shape[1:])

    def representative() -> Iterator[list[np.ndarray]]:
        for index in range(len(shown)):
            yield [shown[index : index + 1]]

    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    return converter


def _converter(model: Any) -> Any:
    shape = [1, *model.input_shape[1:]]
    if None in shape:
        raise UnsupportedLayerError(
            f"the model takes samples of shape {tuple(shape[1:])}; a device needs a fixed one: give keras.Input all"
        )
    checks.weights(model)
    call = tf.function(lambda x: model(x, training=False), input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
    # Variables must become constants first: the calibrator runs no initialiser for them.
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())
    converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
    converter.frozen = frozen.graph.as_graph_def()  # knows which layer an operation is of
    return converter


def _convert(converter: Any, what: str) -> bytes:
    try:
        with quiet_stderr():
            return bytes(converter.convert())
    except Exception as error:
        raise ConversionError(f"{what}: {_reason(str(error), converter.frozen)}") from error


def _reason(message: str, graph: Any) -> str:
    """What the converter's pages of MLIR come down to, in one line."""
    operations = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", message)))
    if not operations:
        return f"TensorFlow's converter refused the model: {' '.join(message.split())[:300]}"
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    where = {each: next((node.name for node in nodes if node.op == each), "") for each in operations}
    named = ", ".join(f"tf.{each} (in {where[each].rpartition('/')[0] or 'the model'})" for each in operations)
    return f"{named} has no TFLite form; build the model without it"
