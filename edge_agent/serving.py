"""The model that serves: one bundle's transform and runtime, and the swap to another that no inference straddles."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from contract.bundle import Bundle
from contract.errors import ContractError, TransformError
from contract.messages import BundleRef
from contract.profile import Counts, ProfileSpec, count
from contract.transform import Transform
from edge_agent.errors import RefusedError, RuntimeModelError
from edge_agent.runtime import Runtime, softmax

_ROWS = 256  # samples inferred at a time: a sample file may hold more than fit into memory as float32


@dataclass(frozen=True)
class Inference:
    """What came of a batch: model features and class probabilities, one row a sample."""

    features: np.ndarray
    probabilities: np.ndarray


class Model:
    """What of a bundle must stay in memory to serve it.

    Attributes:
        ref: the bundle.
        profile: the bins that inferences are counted on.
        profile_digest: of those bins.
    """

    def __init__(self, ref: BundleRef, bundle: Bundle, *, threads: int) -> None:
        """Load the inference model.

        Raises:
            RuntimeModelError: LiteRT cannot run it here, or it does not fit the transform.
        """
        self.ref = ref
        self.profile: ProfileSpec = bundle.profile.spec
        self.profile_digest = self.profile.digest()
        self._transform: Transform = bundle.transform
        self._temperature = bundle.manifest.temperature
        self._runtime = Runtime(bundle.files["inference"], threads=threads)
        if self._transform.output_shape != self._runtime.input_shape or self._runtime.classes != self.profile.classes:
            raise RuntimeModelError(
                f"the model takes {self._runtime.input_shape} and gives {self._runtime.classes} classes, "
                f"the bundle says {self._transform.output_shape} and {self.profile.classes}"
            )

    def logits(self, raw: np.ndarray) -> np.ndarray:
        """Raw samples to logits, as the golden vectors record them: float32, shape (n, classes)."""
        return self._runtime.logits(self._transform.apply(raw))

    def infer(self, raw: np.ndarray) -> Inference:
        """Raw samples to profile features and calibrated probabilities.

        Raises:
            TransformError: samples that the transform refuses.
            RuntimeModelError: the interpreter failed, or gave an output that is not finite.
        """
        features, probabilities = [], []
        for start in range(0, max(len(raw), 1), _ROWS):
            try:
                values = self._transform.apply(raw[start : start + _ROWS])
            except TransformError as error:
                raise TransformError(f"samples from {start} on: {error}") from error
            features.append(self._transform.features(values))
            probabilities.append(softmax(self._runtime.logits(values), self._temperature))
            if not np.isfinite(probabilities[-1]).all():
                raise RuntimeModelError(f"the model's output for samples from {start} on is not finite")
        return Inference(np.concatenate(features), np.concatenate(probabilities))

    def count(self, inference: Inference, rows: slice) -> Counts:
        """Counts of some rows of an inference, on the bundle's bins."""
        return count(self.profile, inference.features[rows], inference.probabilities[rows])


class Serving:
    """Holds the model that serves. Hold `lock` while using it, so that a swap waits for the batch to be counted.

    Attributes:
        lock: for use and swap.
        model: None before the first bundle.
        inferences: since this start of the agent.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.model: Model | None = None
        self.inferences = 0

    def swap(self, model: Model | None, commit: Callable[[], None]) -> None:
        """Commit the change durably, then serve the new model; if `commit` fails, the old one serves on."""
        with self.lock:
            commit()
            self.model = model


def self_test(model: Model, bundle: Bundle) -> None:
    """Run the golden vectors through this device's own runtime.

    Raises:
        RefusedError: an output differs by more than the manifest allows.
    """
    expected = bundle.golden["logits"]
    try:
        got = model.logits(bundle.golden["x"])
    except (ContractError, RuntimeModelError) as error:
        raise RefusedError(f"golden vectors cannot run: {error}") from error
    if got.shape != expected.shape:
        raise RefusedError(f"golden vectors: {got.shape} outputs, expected {expected.shape}")
    worst = float(np.abs(got - expected).max())
    if not worst <= bundle.manifest.golden_tolerance:  # also where it is NaN
        raise RefusedError(
            f"golden vectors: an output differs by {worst:.4g}, allowed is {bundle.manifest.golden_tolerance:.4g}"
        )
