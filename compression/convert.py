"""A Keras model as an inference `.tflite` with batch size 1: float32, or integers only."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cloud.learning.backend import quiet_stderr
from compression.errors import ConversionError

REPRESENTATIVE_SAMPLES = 200  # enough for stable ranges; calibration runs every one of them


def to_float(model: Any) -> bytes:
    """Float32 weights and activations.

    Args:
        model: Keras 3 or tf_keras, (batch, *input) to logits (batch, classes).

    Raises:
        ConversionError: an operation without a TFLite form.
    """
    return _convert(_converter(model), "float")


def to_int8(model: Any, x: np.ndarray) -> bytes:
    """Full-integer: weights, activations, input and output are int8 (Jacob et al. 2018, arXiv:1712.05877).

    Args:
        model: as for `to_float`.
        x: model input that shows the ranges of activations, float32 (n, *input); training samples.

    Raises:
        ConversionError: an operation without an integer form.
    """

    def representative() -> Iterator[list[np.ndarray]]:
        for index in range(min(len(x), REPRESENTATIVE_SAMPLES)):
            yield [x[index : index + 1]]

    converter = _converter(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    return _convert(converter, "int8")


def _converter(model: Any) -> Any:
    shape = [1, *model.input_shape[1:]]
    call = tf.function(lambda x: model(x, training=False), input_signature=[tf.TensorSpec(shape, tf.float32, name="x")])
    # Variables must become constants first: the calibrator runs no initialiser for them.
    frozen = convert_variables_to_constants_v2(call.get_concrete_function())
    return tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())


def _convert(converter: Any, what: str) -> bytes:
    try:
        with quiet_stderr():
            return bytes(converter.convert())
    except Exception as error:
        raise ConversionError(f"{what}: TensorFlow's converter refused the model: {str(error)[:500]}") from error
