"""The one way in which an artifact is measured, whatever made it: in the agent's own runtime.

Accuracy on the validation samples may be looked at while choosing; the test samples are looked at once, for variants
that are kept.
"""

import gzip
import os

import msgspec
import numpy as np
import zstandard

from cloud.learning import calibration, metrics
from compression import arena, intervals
from compression.errors import ArtifactError
from compression.source import Part, Source
from edge_agent import runtime
from edge_agent.errors import RuntimeModelError
from edge_agent.runtime import Runtime
from edge_agent.runtime_backend import RuntimeOptions


class Worst(msgspec.Struct, frozen=True, kw_only=True):
    """The class or device that is answered worst: its name, accuracy, and how many samples say so."""

    name: str
    accuracy: float
    samples: int


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """Microseconds of one inference: input to the artifact's own type, copies in and out, and the run between."""

    p50_us: float
    p95_us: float


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of an artifact as it lies on the device, and as it travels."""

    raw: int
    gzip: int
    zstd: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of one variant. Accuracies are from 0 to 1; a drop is accuracy lost against the float variant.

    Attributes:
        validation_accuracy: on the validation samples.
        drop, drop_low, drop_high: on them, with the 95 % paired interval.
        accuracy, test_drop, test_drop_low, test_drop_high: the same on the test samples, None before that look.
        calibration_error: expected calibration error on the validation samples under `temperature`.
        calibration_change: of that against float; above 0 is worse.
        bytes, gzip_bytes, zstd_bytes: raw, and as it travels (gzip 9, Zstandard 19).
        arena_bytes: of activations at once, see `compression.arena`.
        p50_us, p95_us: of one inference on one thread, on the machine that compressed.
        threads, p50_threads_us, p95_threads_us: the same on all its processors.
        worst_class, worst_device: on the validation samples.
        temperature: that its bundle divides logits by; fitted to this artifact unless devices counted under another.
    """

    validation_accuracy: float
    drop: float
    drop_low: float
    drop_high: float
    calibration_error: float
    calibration_change: float
    bytes: int
    gzip_bytes: int
    zstd_bytes: int
    arena_bytes: int
    p50_us: float
    p95_us: float
    threads: int
    p50_threads_us: float
    p95_threads_us: float
    worst_class: Worst
    worst_device: Worst
    temperature: float
    accuracy: float | None = None
    test_drop: float | None = None
    test_drop_low: float | None = None
    test_drop_high: float | None = None


class Judge:
    """Measures artifacts against the float one of the same source."""

    def __init__(self, source: Source, base: bytes) -> None:
        """Look at the float artifact.

        Args:
            source: data and labels; a temperature that the cohort counted under.
            base: the float artifact.

        Raises:
            ArtifactError: it cannot be run.
        """
        self._source = source
        self._base = base
        self._base_logits = self.logits(base, source.validation)
        self._base_right = _right(self._base_logits, source.validation)
        temperature = self._temperature(self._base_logits)
        self._base_ece = metrics.calibration_error(metrics.softmax(self._base_logits, temperature), source.validation.y)

    @staticmethod
    def logits(content: bytes, part: Part) -> np.ndarray:
        """Logits of an artifact, float32 (n, classes).

        Raises:
            ArtifactError: the runtime refuses it, or logits are not finite.
        """
        try:
            found = Runtime(content).logits(part.x)
        except RuntimeModelError as error:
            raise ArtifactError(str(error)) from error
        if not np.isfinite(found).all():
            raise ArtifactError("the artifact gives logits that are not finite")
        return found

    def validation(self, content: bytes) -> Report:
        """Everything but the test samples.

        Raises:
            ArtifactError: the runtime refuses the artifact.
        """
        part, labels = self._source.validation, self._source.task.labels
        logits = self.logits(content, part)
        right = _right(logits, part)
        lost = intervals.drop(self._base_right, right)
        temperature = self._temperature(logits)
        ece = metrics.calibration_error(metrics.softmax(logits, temperature), part.y)
        size = sizes(content)
        processors = len(os.sched_getaffinity(0))  # that this process may use
        one = latency(content, part.x)
        many = latency(content, part.x, threads=processors) if processors > 1 else one
        return Report(
            validation_accuracy=float(right.mean()),
            drop=lost.value,
            drop_low=lost.low,
            drop_high=lost.high,
            calibration_error=ece,
            calibration_change=ece - self._base_ece,
            bytes=size.raw,
            gzip_bytes=size.gzip,
            zstd_bytes=size.zstd,
            arena_bytes=arena.planned_bytes(content),
            p50_us=one.p50_us,
            p95_us=one.p95_us,
            threads=processors,
            p50_threads_us=many.p50_us,
            p95_threads_us=many.p95_us,
            worst_class=_worst(right, np.array(labels)[part.y]),
            worst_device=_worst(right, part.device),
            temperature=temperature,
        )

    def test(self, report: Report, content: bytes) -> Report:
        """The report with the test samples' figures; look once, at what is kept."""
        part = self._source.test
        right = _right(self.logits(content, part), part)
        lost = intervals.drop(_right(self.logits(self._base, part), part), right)
        return msgspec.structs.replace(
            report,
            accuracy=float(right.mean()),
            test_drop=lost.value,
            test_drop_low=lost.low,
            test_drop_high=lost.high,
        )

    def _temperature(self, logits: np.ndarray) -> float:
        return self._source.temperature or calibration.temperature(logits, self._source.validation.y)


def _right(logits: np.ndarray, part: Part) -> np.ndarray:
    return np.asarray(logits.argmax(axis=1) == part.y)


def _worst(right: np.ndarray, group: np.ndarray) -> Worst:
    """The group with the lowest accuracy; ties by name."""
    names, index = np.unique(group, return_inverse=True)
    samples = np.bincount(index)
    accuracy = np.bincount(index, right) / samples
    worst = int(accuracy.argmin())
    return Worst(name=str(names[worst]), accuracy=float(accuracy[worst]), samples=int(samples[worst]))


def sizes(content: bytes) -> Sizes:
    """Raw, gzip (level 9) and Zstandard (level 19) sizes."""
    return Sizes(
        raw=len(content),
        gzip=len(gzip.compress(content, 9, mtime=0)),
        zstd=len(zstandard.ZstdCompressor(level=19).compress(content)),
    )


def latency(content: bytes, x: np.ndarray, *, threads: int = 1) -> Latency:
    """Time single inferences on this machine, as a device does when it is asked to.

    Args:
        content: the `.tflite`.
        x: model input, float32; its samples are used in turn.
        threads: of the runtime.
    """
    taken = runtime.latency(Runtime(content, RuntimeOptions(threads=threads)), x) / 1000
    return Latency(p50_us=float(np.percentile(taken, 50)), p95_us=float(np.percentile(taken, 95)))


def output_step(content: bytes) -> float:
    """Difference of two neighbouring output values; 0 for a float output."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    return float(interpreter.get_output_details()[0]["quantization"][0])
