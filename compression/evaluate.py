"""Measure an inference `.tflite` in the agent's own runtime: what it gets right, how fast, how many bytes."""

import gzip
import time

import msgspec
import numpy as np
import zstandard
from ai_edge_litert.interpreter import Interpreter

from cloud.learning import metrics
from edge_agent.runtime import Runtime

WARM_UP = 20
TIMED = 300


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of an artifact as it lies on the device, and as it travels."""

    raw: int
    gzip: int
    zstd: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds of one inference on one thread, input and output copies included."""

    p50_us: float
    p95_us: float


def accuracy(content: bytes, x: np.ndarray, y: np.ndarray) -> float:
    """Part of samples that the artifact gets right; x is model input, float32."""
    return metrics.accuracy(Runtime(content).logits(x), y)


def sizes(content: bytes) -> Sizes:
    """Raw, gzip (level 9) and Zstandard (level 19) sizes."""
    return Sizes(
        raw=len(content),
        gzip=len(gzip.compress(content, 9, mtime=0)),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(content)),
    )


def latency(content: bytes, x: np.ndarray, *, calls: int = TIMED) -> Latency:
    """Time single inferences on this machine.

    Args:
        content: the `.tflite`.
        x: model input, float32; its samples are used in turn.
        calls: timed inferences, after `WARM_UP` that are not.
    """
    runtime = Runtime(content)
    seconds = []
    for call in range(WARM_UP + calls):
        sample = x[call % len(x)][None]
        begun = time.perf_counter_ns()
        runtime.logits(sample)
        seconds.append(time.perf_counter_ns() - begun)
    timed = np.asarray(seconds[WARM_UP:]) / 1000
    return Latency(p50_us=float(np.percentile(timed, 50)), p95_us=float(np.percentile(timed, 95)))


def output_step(content: bytes) -> float:
    """Difference of two neighbouring output values; 0 for a float output."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    return float(interpreter.get_output_details()[0]["quantization"][0])
