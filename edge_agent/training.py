"""On-device training without a framework: a readable loop over the stateless signature of `contract.training`.

Pure but for the interpreter: weights, data and seed come in, new weights and metrics go out. Virtual clients of a
simulation run this very loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract import training as signature
from contract.tensors import Arrays
from contract.training import Optimizer, TrainingSpec
from edge_agent.errors import RuntimeModelError, TrainingDivergedError, TrainingError, TrainingStoppedError
from edge_agent.runtime_backend import RuntimeOptions, training_interpreter


@dataclass(frozen=True)
class TrainResult:
    """What local training gave.

    Attributes:
        weights: names of `spec.weights`, then of `spec.state`.
        loss: mean cross-entropy over the last epoch, without the proximal term.
        accuracy: share of the last epoch's samples whose top class was right, as seen while training.
        examples: samples trained on, each once an epoch.
    """

    weights: Arrays
    loss: float
    accuracy: float
    examples: int


class TrainingRuntime:
    """A training `.tflite` and how to call it.

    Attributes:
        spec: batch size, names and shapes of the weights.
        input_shape: of one sample of model input.
    """

    def __init__(self, model: bytes, spec: TrainingSpec, options: RuntimeOptions = RuntimeOptions()) -> None:  # noqa: B008  # it is frozen
        """Load the model and check its signatures against `spec`.

        Raises:
            RuntimeModelError: not a `.tflite`, or signatures of another shape than `spec` says.
        """
        self.spec = spec
        self._interpreter = training_interpreter(model, options)
        try:
            self._infer = self._interpreter.get_signature_runner(signature.INFER)
            self._train = {
                optimizer: self._interpreter.get_signature_runner(signature.SIGNATURES[optimizer])
                for optimizer in spec.optimizers
            }
        except (ValueError, RuntimeError) as error:
            raise RuntimeModelError(f"LiteRT cannot load the training model: {error}") from error
        self.w = signature.names("w", len(spec.weights))
        self.s = signature.names("s", len(spec.state))
        self.m, self.v, self.a, self.g = (signature.names(letter, len(spec.weights)) for letter in "mvag")
        for optimizer, runner in self._train.items():
            self._check(optimizer, runner.get_input_details())
        self.input_shape: tuple[int, ...] = tuple(
            int(size) for size in self._infer.get_input_details()["x"]["shape"][1:]
        )

    def _check(self, optimizer: Optimizer, details: Mapping[str, Any]) -> None:
        spec = self.spec
        groups = {*self.w, *self.s, *self.moments(optimizer), *self.a, *self.g}
        expected = {*groups, "x", "y", "mask", *signature.scalars(optimizer, spec)}
        if set(details) != expected:
            raise RuntimeModelError(f"the training signature has other inputs: {sorted(set(details) ^ expected)}")
        for letters, group in ((self.w, spec.weights), (self.s, spec.state)):
            for name, tensor in zip(letters, group, strict=True):
                if details[name]["shape"].tolist() != tensor.shape:
                    raise RuntimeModelError(f"{name} ({tensor.name}): the signature has another shape")
        if details["x"]["shape"][0] != spec.batch:
            raise RuntimeModelError(f"the signature takes {details['x']['shape'][0]} samples, not {spec.batch}")

    def moments(self, optimizer: Optimizer) -> list[str]:
        """Names of an optimiser's state that is of the weights' shapes."""
        return [*self.m, *self.v] if optimizer == "adam" else self.m

    def step(self, tensors: Mapping[str, Any], optimizer: Optimizer = "sgd") -> dict[str, np.ndarray]:
        """One call of an optimiser's signature; names as in `contract.training`."""
        return self._call(self._train[optimizer], tensors)

    def forward(self, tensors: Mapping[str, Any]) -> np.ndarray:
        """One call of the `infer` signature: logits, shape (batch, classes)."""
        return self._call(self._infer, tensors)["logits"]

    @staticmethod
    def _call(runner: Any, tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        try:
            return dict(runner(**tensors))
        except (ValueError, RuntimeError) as error:
            raise RuntimeModelError(f"LiteRT cannot run the training model: {error}") from error


def train(
    runtime: TrainingRuntime,
    weights: Arrays,
    x: np.ndarray,
    y: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    optimizer: Optimizer = "sgd",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    proximal_mu: float = 0.0,
    offset: Arrays | None = None,
    seed: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Steps of an optimiser over the local samples, from `weights` (which are also the proximal anchor).

    Args:
        runtime: the training model.
        weights: float32 by name, ordered: `spec.weights`, then `spec.state`.
        x: float32 model input, shape (n, *input_shape).
        y: integer classes, shape (n,).
        epochs: passes over the samples, at least 1.
        learning_rate: of a step.
        optimizer: whose state starts at zero.
        momentum: SGD's heavy-ball factor, or how Adam's first moments decay.
        weight_decay: share of a weight that goes in a step, times the learning rate.
        proximal_mu: strength of FedProx' pull to `weights`.
        offset: added to each gradient (SCAFFOLD), by name of `spec.weights`; None adds nothing.
        seed: of the shuffles.
        should_stop: asked before every step.

    Raises:
        TrainingError: no samples, no epochs, weights and samples that do not fit the signature, or an optimiser or
            weight decay that it does not have.
        TrainingDivergedError: a loss or weight that is not finite.
        TrainingStoppedError: `should_stop` said so.
    """
    _check_weights(runtime, weights)
    _check_samples(runtime, x)
    if not len(x) or len(x) != len(y) or epochs < 1:
        raise TrainingError(f"{len(x)} samples, {len(y)} labels and {epochs} epochs: nothing to train on")
    _check_optimizer(runtime.spec, optimizer, weight_decay)
    values = list(weights.values())
    count, moments = len(runtime.w), runtime.moments(optimizer)
    state = dict(zip((*runtime.w, *runtime.s), values, strict=True))
    state |= {name: np.zeros_like(values[index % count]) for index, name in enumerate(moments)}
    if optimizer == "adam":
        state["step"] = np.zeros([], np.float32)
    fixed: dict[str, Any] = dict(zip(runtime.a, values[:count], strict=True))
    fixed |= dict(zip(runtime.g, _offset(runtime, weights, offset), strict=True))
    fixed |= {"lr": np.float32(learning_rate), "momentum": np.float32(momentum), "mu": np.float32(proximal_mu)}
    if runtime.spec.decay:
        fixed["decay"] = np.float32(weight_decay)
    random = np.random.default_rng(seed)
    loss = correct = 0.0
    for _ in range(epochs):
        loss = correct = 0.0
        order = random.permutation(len(x))
        for start in range(0, len(order), runtime.spec.batch):
            if should_stop():
                raise TrainingStoppedError("training was stopped before its last batch")
            rows = order[start : start + runtime.spec.batch]
            output = runtime.step({**state, **fixed, **_batch(runtime, x[rows], y[rows])}, optimizer)
            state |= {name: output[name] for name in state if name in output}  # a frozen weight does not come back
            loss += float(output["loss"]) * len(rows)
            correct += float(output["correct"])
    trained = dict(zip(weights, (state[name] for name in (*runtime.w, *runtime.s)), strict=True))
    if not np.isfinite(loss) or not all(np.isfinite(array.sum(dtype=np.float64)) for array in trained.values()):
        raise TrainingDivergedError(f"training diverged (loss {loss / len(x):.3g}); lower the learning rate")
    return TrainResult(trained, loss / len(x), correct / len(x), len(x))


def infer(runtime: TrainingRuntime, weights: Arrays, x: np.ndarray) -> np.ndarray:
    """Logits of the training model under given weights.

    Args:
        runtime: the training model.
        weights: as for `train`.
        x: float32 model input, shape (n, *input_shape).

    Returns:
        float32, shape (n, classes).

    Raises:
        TrainingError: weights or samples that do not fit the signature, or no samples.
        TrainingDivergedError: logits that are not finite.
    """
    _check_weights(runtime, weights)
    _check_samples(runtime, x)
    if not len(x):
        raise TrainingError("no samples to evaluate")
    named = dict(zip((*runtime.w, *runtime.s), weights.values(), strict=True))
    parts = []
    for start in range(0, len(x), runtime.spec.batch):
        rows = x[start : start + runtime.spec.batch]
        parts.append(runtime.forward({**named, "x": _pad(rows, runtime.spec.batch)})[: len(rows)])
    logits = np.concatenate(parts)
    if not np.isfinite(logits).all():
        raise TrainingDivergedError("the given weights produce logits that are not finite")
    return logits


def _batch(runtime: TrainingRuntime, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    size = runtime.spec.batch
    mask = np.zeros(size, np.float32)
    mask[: len(x)] = 1
    return {"x": _pad(x, size), "y": _pad(np.asarray(y, np.int32), size), "mask": mask}


def _pad(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    padded = np.zeros((size, *rows.shape[1:]), rows.dtype)
    padded[: len(rows)] = rows
    return padded


def _check_optimizer(spec: TrainingSpec, optimizer: Optimizer, weight_decay: float) -> None:
    if optimizer not in spec.optimizers:
        raise TrainingError(f"the bundle's training signature has no {optimizer}, it has {', '.join(spec.optimizers)}")
    if weight_decay and not spec.decay:
        raise TrainingError("the bundle's training signature is older than weight decay; compress the model again")


def _check_weights(runtime: TrainingRuntime, weights: Arrays) -> None:
    wanted = [*runtime.spec.weights, *runtime.spec.state]
    if list(weights) != [tensor.name for tensor in wanted]:
        raise TrainingError(f"expected weights {[tensor.name for tensor in wanted][:8]}, got {list(weights)[:8]}")
    for tensor in wanted:
        array = weights[tensor.name]
        if array.dtype != np.float32 or list(array.shape) != tensor.shape:
            raise TrainingError(f"{tensor.name}: expected float32{tensor.shape}, got {array.dtype}{list(array.shape)}")


def _check_samples(runtime: TrainingRuntime, x: np.ndarray) -> None:
    if x.dtype != np.float32 or x.shape[1:] != runtime.input_shape:
        raise TrainingError(f"expected float32 samples of shape {runtime.input_shape}, got {x.dtype}{x.shape[1:]}")


def _offset(runtime: TrainingRuntime, weights: Arrays, offset: Arrays | None) -> list[np.ndarray]:
    names = [tensor.name for tensor in runtime.spec.weights]
    if offset is None:
        zero = np.zeros((), np.float32)
        return [np.broadcast_to(zero, weights[name].shape) for name in names]  # which takes no memory
    if list(offset) != names:
        raise TrainingError(f"expected gradient offsets for {names[:8]}, got {list(offset)[:8]}")
    return [offset[name].astype(np.float32, copy=False) for name in names]
