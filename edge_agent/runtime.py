"""Inference with LiteRT alone: the same few lines measure a variant in the cloud and serve it on the device."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from edge_agent.errors import RuntimeModelError
from edge_agent.runtime_backend import RuntimeOptions, interpreter

TIMED_CALLS = 300  # of a series, in `_ROUNDS`
_WARM_UP, _ROUNDS = 20, 3
_LONGEST_S = 15.0  # of one series; a large model is called less often


class Runtime:
    """One `.tflite` with one input (1, *input_shape) and one output (1, classes), of any io dtype.

    Attributes:
        input_shape: of one sample of model input, without the batch.
        classes: length of the output.
    """

    def __init__(self, model: bytes, options: RuntimeOptions = RuntimeOptions()) -> None:  # noqa: B008  # it is frozen
        """Load a model.

        Raises:
            RuntimeModelError: not a `.tflite`, an operation that LiteRT lacks, a delegate that cannot be loaded, or
                other inputs and outputs.
        """
        self._interpreter = interpreter(model, options)
        try:
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise RuntimeModelError(f"LiteRT cannot load the model: {error}") from error
        inputs, outputs = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        if len(inputs) != 1 or len(outputs) != 1:
            raise RuntimeModelError(
                f"a model needs one input and one output, this has {len(inputs)} and {len(outputs)}"
            )
        self._input, self._output = inputs[0], outputs[0]
        if self._input["shape"][:1].tolist() != [1] or len(self._output["shape"]) != 2 or self._output["shape"][0] != 1:
            raise RuntimeModelError(
                f"shapes {self._input['shape'].tolist()} -> {self._output['shape'].tolist()}: "
                "expected (1, ...) -> (1, classes); export the model with batch size 1"
            )
        self.input_shape: tuple[int, ...] = tuple(int(size) for size in self._input["shape"][1:])
        self.classes = int(self._output["shape"][1])
        self.input_type, self.output_type = np.dtype(self._input["dtype"]), np.dtype(self._output["dtype"])
        self._set, self._invoke, self._get = _calls(self._interpreter, self._output["index"])
        self._in = self._input["index"]

    def logits(self, x: np.ndarray) -> np.ndarray:
        """Run every sample, one by one, as the device does.

        Args:
            x: float32 model input, shape (n, *input_shape).

        Returns:
            float32, shape (n, classes); dequantised where the output is integer.

        Raises:
            RuntimeModelError: another shape, or the interpreter failed.
        """
        if x.shape[1:] != self.input_shape:
            raise RuntimeModelError(f"the model takes samples of shape {self.input_shape}, got {x.shape[1:]}")
        values = self.quantize(x)
        raw = np.empty((len(x), self.classes), self._output["dtype"])
        try:
            for index in range(len(values)):
                self._set(self._in, values[index : index + 1])
                self._invoke()
                raw[index] = self._get()[0]
        except (ValueError, RuntimeError) as error:
            raise RuntimeModelError(f"LiteRT cannot run the model: {error}") from error
        return self.dequantize(raw)

    def run(self, values: np.ndarray) -> np.ndarray:
        """Run one sample.

        Args:
            values: of the model's own input type, shape (1, *input_shape).

        Returns:
            Of the model's own output type, shape (1, classes); a new array.

        Raises:
            RuntimeModelError: the interpreter failed.
        """
        try:
            self._set(self._in, values)
            self._invoke()
            return self._get()
        except (ValueError, RuntimeError) as error:
            raise RuntimeModelError(f"LiteRT cannot run the model: {error}") from error

    def quantizer(self) -> "Quantizer":
        """`quantize` for one sample after another, on buffers of its own."""
        return Quantizer(self.input_shape, self._input)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """Model input as the model's own input type."""
        return _quantize(x, self._input)

    def dequantize(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs of the model's own type as float32 logits."""
        return _dequantize(outputs, self._output)


def _calls(whole: Any, output: int) -> tuple[Callable[[int, np.ndarray], None], Callable[[], None], Callable[[], Any]]:
    """Set a tensor, invoke, get the output: the compiled calls themselves, where the library has them under this name.

    Around them it asks each time whether an array shares the interpreter's memory; nobody makes one here.
    """
    inner: Any = getattr(whole, "_interpreter", None)
    if all(hasattr(inner, name) for name in ("SetTensor", "Invoke", "GetTensor")):
        return inner.SetTensor, inner.Invoke, partial(inner.GetTensor, output, 0)
    return whole.set_tensor, whole.invoke, partial(whole.get_tensor, output)


class Quantizer:
    """Turns float32 samples into the model's own input type, without making arrays."""

    def __init__(self, shape: tuple[int, ...], detail: dict[str, Any]) -> None:
        """Lay out the operands and buffers of a model's input."""
        dtype = np.dtype(detail["dtype"])
        self._as_is = dtype == np.float32
        self._tensor = np.zeros((1, *shape), dtype)
        self._scratch = np.zeros((1, *shape), np.float32)
        self._operations: list[tuple[np.ufunc, np.ndarray]] = []
        if dtype.kind != "f":
            scale, zero = detail["quantization"]
            limit = np.iinfo(dtype)
            self._scale = np.asarray(scale or 1.0, np.float32)
            numbers = ((np.add, zero), (np.maximum, limit.min), (np.minimum, limit.max))
            self._operations = [(operation, np.asarray(number, np.float32)) for operation, number in numbers]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The model's input of one sample, float32 of shape (1, *input_shape); valid until the next call."""
        if self._as_is:
            return values
        if self._operations:
            scratch = self._scratch
            np.divide(values, self._scale, out=scratch)
            np.rint(scratch, out=scratch)
            for operation, number in self._operations:
                operation(scratch, number, out=scratch)
            values = scratch
        np.copyto(self._tensor, values, casting="unsafe")
        return self._tensor


def _quantize(x: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return x.astype(dtype, copy=False)
    scale, zero = detail["quantization"]
    limit = np.iinfo(dtype)
    scaled = x.astype(np.float32) / np.float32(scale) if scale else x
    return np.clip(np.rint(scaled) + zero, limit.min, limit.max).astype(dtype)


def _dequantize(raw: np.ndarray, detail: dict[str, Any]) -> np.ndarray:
    scale, zero = detail["quantization"]
    if raw.dtype.kind == "f" or not scale:
        return raw.astype(np.float32)
    return (raw.astype(np.float32) - np.float32(zero)) * np.float32(scale)


def latency(runtime: Runtime, x: np.ndarray, *, calls: int = TIMED_CALLS, longest_s: float = _LONGEST_S) -> np.ndarray:
    """Time single inferences: the best of some rounds, so that a neighbour's work counts less.

    Args:
        runtime: of the model.
        x: model input, float32; its samples are used in turn.
        calls: timed inferences, after some that are not.
        longest_s: where so long has passed no further round begins, and a round ends.

    Returns: nanoseconds of each call of the best round.
    """
    quantize, ended = runtime.quantizer(), time.monotonic() + longest_s
    rounds: list[np.ndarray] = []
    for number in range(_ROUNDS):
        taken: list[int] = []
        skipped = _WARM_UP if number == 0 else 0
        for call in range(skipped + max(1, calls // _ROUNDS)):
            sample = x[call % len(x)][None]
            begun = time.perf_counter_ns()
            runtime.run(quantize(sample))
            taken.append(time.perf_counter_ns() - begun)
            if time.monotonic() > ended:
                break
        rounds.append(np.asarray(taken[skipped:] or taken))
        if time.monotonic() > ended:
            break
    return min(rounds, key=lambda each: float(np.median(each)))


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of logits / temperature (Guo et al. 2017, arXiv:1706.04599, eq. 9).

    Args:
        logits: shape (n, classes).
        temperature: positive; above 1 softens.

    Returns:
        float32, shape (n, classes), rows sum to 1; NaN where logits are NaN or plus infinity.

    Raises:
        RuntimeModelError: a temperature that is not a positive number.
    """
    if not temperature > 0 or not math.isfinite(temperature):
        raise RuntimeModelError(f"temperature {temperature} is not a positive number")
    with np.errstate(over="ignore", invalid="ignore"):  # logits that are not finite give NaN
        scaled = np.asarray(logits, np.float32) / np.float32(temperature)
        exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)
