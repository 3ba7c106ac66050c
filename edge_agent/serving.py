"""The models that serve: a bundle's transform and runtime each, and the swap to another that no inference straddles."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from contract.bundle import Bundle
from contract.errors import TransformError
from contract.messages import BundleRef
from contract.profile import Counts, ProfileSpec, count
from contract.transform import Transform
from edge_agent.config import Runtime as RuntimeSettings
from edge_agent.errors import NotFiniteError, RefusedError, RuntimeModelError, UnavailableError
from edge_agent.health import Meter
from edge_agent.runtime import Runtime, softmax
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.steps import Steps

_NOTHING = "no model {!r} serves on this device"
_PATIENCE_S = 10.0  # for an inference in hand, when its model must make room for another
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
        labels: names of the classes.
        input_shape: of one raw sample.
        step: infers one raw sample and counts it, as `Steps.step`; `take` gives the counts, `probabilities` reads the
            output, which has the model's own type and shape (1, classes).
    """

    def __init__(self, ref: BundleRef, bundle: Bundle, options: RuntimeOptions) -> None:
        """Load the inference model.

        Raises:
            RuntimeModelError: LiteRT cannot run it here, or it does not fit the transform.
        """
        self.ref = ref
        self.profile: ProfileSpec = bundle.profile.spec
        self.profile_digest = self.profile.digest()
        self.labels = tuple(bundle.manifest.labels)
        self.input_shape = tuple(bundle.transform.spec.input_shape)
        self._transform: Transform = bundle.transform
        self._temperature = bundle.manifest.temperature
        self._runtime = Runtime(bundle.files["inference"], options)
        if self._transform.output_shape != self._runtime.input_shape or self._runtime.classes != self.profile.classes:
            raise RuntimeModelError(
                f"the model takes {self._runtime.input_shape} and gives {self._runtime.classes} classes, "
                f"the bundle says {self._transform.output_shape} and {self.profile.classes}"
            )
        self._calibrated = partial(_calibrated, self._runtime, self._temperature)  # it does not hold the model
        self._steps = Steps(self._transform, self._runtime, self.profile, self._calibrated)
        self.step: Callable[[np.ndarray], np.ndarray]
        self.meter = None

    def check(self, raw: np.ndarray) -> None:
        """Raise TransformError if raw samples do not fit; nothing is inferred."""
        for start in range(0, len(raw), _ROWS):
            self._transform.apply(raw[start : start + _ROWS])

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
            probabilities.append(self._probabilities(values, start))
        return Inference(np.concatenate(features), np.concatenate(probabilities))

    @property
    def meter(self) -> Meter | None:
        """Counts how the model does while it is on probation; None afterwards."""
        return self._meter

    @meter.setter
    def meter(self, meter: Meter | None) -> None:
        self._meter = meter
        self.step = self._steps.step if meter is None else _metered(self._steps.step, meter, self._calibrated)

    def probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of outputs in the model's own type, shape (n, classes)."""
        return self._calibrated(outputs)

    def read(self, outputs: np.ndarray) -> np.ndarray:
        """Outputs in the model's own type as float32: the logits."""
        return self._runtime.dequantize(outputs)

    def predict(self, raw: np.ndarray) -> np.ndarray:
        """Infer raw samples and count them; `take` gives the counts.

        Returns:
            Calibrated probabilities, float32 of shape (n, classes).

        Raises:
            TransformError, RuntimeModelError: as `infer`; nothing is counted.
        """
        inference = self.infer(raw)
        self._steps.add(inference.features, inference.probabilities)
        return inference.probabilities

    def take(self) -> Counts:
        """Counts of what `step` and `predict` inferred since the last call; any thread may call it."""
        return self._steps.take()

    def _probabilities(self, values: np.ndarray, start: int) -> np.ndarray:
        meter, began = self.meter, time.perf_counter()  # a probation may end meanwhile
        try:
            probabilities = softmax(self._runtime.logits(values), self._temperature)
        except RuntimeModelError:
            if meter is not None:
                meter.failed(len(values))
            raise
        seconds = time.perf_counter() - began
        finite = np.isfinite(probabilities).all(axis=1)
        if meter is not None:
            meter.served(int(finite.sum()), seconds, float(probabilities[finite].max(axis=1, initial=0.0).sum()))
            meter.not_finite(int((~finite).sum()))
        if not finite.all():
            raise NotFiniteError(f"the model's output for samples from {start} on is not finite")
        return probabilities

    def count(self, inference: Inference, rows: slice) -> Counts:
        """Counts of some rows of an inference, on the bundle's bins."""
        return count(self.profile, inference.features[rows], inference.probabilities[rows])


@dataclass(frozen=True)
class Origin:
    """Where a model comes from when it must be loaded again, and the memory that it takes then.

    `load` raises RefusedError where the disk lost the bundle, RuntimeModelError where the runtime refuses it.
    """

    ref: BundleRef
    load: Callable[[], Model]
    memory_bytes: int


class Broken(NamedTuple):
    """A bundle that does not serve any more, and why; `on_disk` where it could not be loaded again."""

    ref: BundleRef
    reason: str
    on_disk: bool


def _calibrated(runtime: Runtime, temperature: float, outputs: np.ndarray) -> np.ndarray:
    return softmax(runtime.dequantize(outputs), temperature)


def _metered(
    step: Callable[[np.ndarray], np.ndarray], meter: Meter, probabilities: Callable[[np.ndarray], np.ndarray]
) -> Callable[[np.ndarray], np.ndarray]:
    """A step that tells a meter how it went."""

    def metered(sample: np.ndarray) -> np.ndarray:
        began = time.perf_counter()
        try:
            output = step(sample)
        except NotFiniteError:
            meter.not_finite(1)
            raise
        except RuntimeModelError:
            meter.failed(1)
            raise
        meter.served(1, time.perf_counter() - began, float(probabilities(output).max()))
        return output

    return metered


class Seat:
    """One model's place: `with seat as model` uses it, and a swap waits until nobody does.

    A model that is not in memory is loaded then.
    """

    __slots__ = ("_admit", "_lock", "_model", "name", "origin", "used_at")

    def __init__(self, name: str, admit: "Callable[[Seat], Model]") -> None:
        self.name = name
        self._admit = admit
        self._lock = threading.RLock()
        self._model: Model | None = None
        self.origin: Origin | None = None
        self.used_at = 0.0  # monotonic seconds

    def __enter__(self) -> Model:
        """Take the model.

        Raises:
            UnavailableError: it was taken off this device, or cannot be loaded now.
        """
        self._lock.acquire()
        try:
            model = self._model if self._model is not None else self._load()
        except BaseException:
            self._lock.release()
            raise
        self.used_at = time.monotonic()
        return model

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        self._lock.release()

    def _load(self) -> Model:
        self._model = self._admit(self)
        return self._model

    def swap(self, model: Model | None, origin: Origin | None, commit: Callable[[], None]) -> None:
        """Commit, then put another model in its place."""
        with self._lock:
            commit()
            self._model, self.origin = model, origin

    def unload(self) -> bool:
        """Take the model out of memory once nobody uses it; False where that takes too long."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            return False
        self._model = None
        self._lock.release()
        return True

    def peek(self) -> Model | None:
        """The model, though somebody may be using it; None where it is not in memory."""
        return self._model

    @property
    def ref(self) -> BundleRef | None:
        """What serves here, in memory or not."""
        model = self._model
        return model.ref if model is not None else self.origin.ref if self.origin is not None else None


class Serving:
    """The models that serve, by name. Use one within `use`: an interpreter runs one inference at a time.

    A model need not be in memory: it is loaded when somebody asks for it. Where `runtime.memory_bytes` is too little
    for all, the least important go out of memory, and among those the one that was not used for longest.

    Attributes:
        broken: bundles that somebody must look after.
    """

    def __init__(self, runtime: RuntimeSettings | None = None) -> None:
        """Begin with nothing; `runtime` are the settings, None the defaults."""
        self._runtime = runtime or RuntimeSettings()
        self._seats: dict[str, Seat] = {}
        self._lock, self._loading = threading.Lock(), threading.RLock()
        self._inferences = 0
        self.broken: queue.SimpleQueue[Broken] = queue.SimpleQueue()

    def names(self) -> list[str]:
        """Models that serve, in memory or not, sorted."""
        return sorted(name for name, seat in list(self._seats.items()) if seat.ref is not None)

    def ref(self, name: str) -> BundleRef | None:
        """The bundle of a model that serves."""
        seat = self._seats.get(name)
        return seat.ref if seat is not None else None

    def get(self, name: str) -> Model | None:
        """A model that is in memory; what it holds may be read, but infer within `use`."""
        seat = self._seats.get(name)
        return seat.peek() if seat is not None else None

    def only(self) -> str | None:
        """Name of the model that serves where it is the only one."""
        names = self.names()
        return names[0] if len(names) == 1 else None

    def bundles(self) -> list[BundleRef]:
        """What serves, by name of the model."""
        return [ref for name in self.names() if (ref := self.ref(name)) is not None]

    def use(self, name: str) -> Seat:
        """A context that holds a model: `with serving.use("digits") as model: ...`.

        Raises:
            UnavailableError: here or on entering: no such model serves, or it cannot be loaded now.
        """
        seat = self._seats.get(name)
        if seat is None:
            raise UnavailableError(_NOTHING.format(name[:64]))
        return seat

    def swap(
        self,
        name: str,
        model: Model | None,
        commit: Callable[[], None] = lambda: None,
        *,
        origin: Origin | None = None,
    ) -> None:
        """Wait for the inference in hand, commit the change durably, then serve the new model, or none.

        Where `commit` fails, the old one serves on.

        Args:
            name: of the model.
            model: that is in memory already; None with an `origin` is loaded when somebody asks for it.
            commit: the durable part.
            origin: where the model comes from; None keeps it in memory.
        """
        with self._lock:
            seat = self._seats.setdefault(name, Seat(name, self._admit))
        seat.swap(model, origin, commit)

    def reload(self, name: str) -> None:
        """Take a model out of memory; who asks for it next loads it anew."""
        seat = self._seats.get(name)
        if seat is not None and seat.origin is not None:
            seat.unload()

    def has_room(self, name: str, memory_bytes: int) -> bool:
        """Whether a model may be in memory now; what is less important goes out of memory for it."""
        with self._loading:
            try:
                self._make_room(name, memory_bytes)
            except UnavailableError:
                return False
            return True

    def _admit(self, seat: Seat) -> Model:
        """Load a model; its seat is held, so that everybody else who wants it waits."""
        origin = seat.origin
        if origin is None:
            raise UnavailableError(_NOTHING.format(seat.name))
        with self._loading:
            self._make_room(seat.name, origin.memory_bytes)
            try:
                return origin.load()
            except (RefusedError, RuntimeModelError, MemoryError) as error:
                reason = str(error) or type(error).__name__
                self.broken.put(Broken(origin.ref, reason, on_disk=True))
                raise UnavailableError(f"model {seat.name!r} cannot be loaded: {reason}") from error

    def _make_room(self, name: str, needed: int) -> None:
        limit, priority = self._runtime.memory_bytes, self._runtime.priority
        while limit and (loaded := self._loaded(name)) and needed + sum(loaded.values()) > limit:
            mine = priority.get(name, 0)
            less = [seat for seat in loaded if seat.origin is not None and priority.get(seat.name, 0) <= mine]
            if not less:
                others = ", ".join(sorted(seat.name for seat in loaded))
                raise UnavailableError(
                    f"model {name!r} takes {needed} bytes of memory, runtime.memory_bytes is {limit}, and {others} "
                    "matter more (runtime.priority)"
                )
            victim = min(less, key=lambda seat: (priority.get(seat.name, 0), seat.used_at))
            if not victim.unload():
                raise UnavailableError(f"model {name!r} waits for memory, but {victim.name!r} is in use all the time")

    def _loaded(self, but: str) -> dict[Seat, int]:
        """Models in memory, but one, and what they take."""
        return {
            seat: seat.origin.memory_bytes if seat.origin is not None else 0
            for seat in list(self._seats.values())
            if seat.name != but and seat.peek() is not None
        }

    @property
    def inferences(self) -> int:
        """Since this start of the agent."""
        return self._inferences

    def count(self, inferences: int) -> None:
        """Note that so many were made."""
        with self._lock:
            self._inferences += inferences
