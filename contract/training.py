"""The training signature: how a stateless `.tflite` is called to take one step of an optimiser, and nothing more.

One signature for each of `TrainingSpec.optimizers`: `train` is SGD with momentum, `train_adam` is Adam.

inputs                               shape
    w000, w001, ...                  trainable weights, in the manifest's order
    s000, s001, ...                  state that is not trained (BatchNorm moments, frozen weights), may be none
    m000, m001, ...                  momentum (Adam: first moments), one for each w
    v000, v001, ...                  Adam alone: second moments, one for each w
    step                             Adam alone: steps taken before, scalar float32
    a000, a001, ...                  proximal anchor: the global weights of the round, one for each w
    g000, g001, ...                  gradient offset (SCAFFOLD: c - c_i), one for each w
    x                                (batch, *input) model input, float32
    y                                (batch,) int32 class
    mask                             (batch,) float32: 1 counts a sample, 0 is padding
    lr, momentum, mu                 scalars, float32; Adam's first moments decay by `momentum`
    decay                            scalar, float32: weight decay; where `TrainingSpec.decay` says so
outputs
    w..., m..., v..., step           new values
    s...                             new values of what a step changes: a frozen weight does not come back
    loss                             mean cross-entropy of the counted samples, without the proximal term
    correct                          counted samples whose top class was right

Signature `infer`, inputs w..., s..., x; output `logits` (batch, classes).

With G = grad(loss) + mu * (w - a) + g, and b = ADAM_BETA2, e = ADAM_EPSILON:

    SGD     m' = momentum * m + G
            w' = w - lr * m' - lr * decay * w
    Adam    m' = momentum * m + (1 - momentum) * G,  v' = b * v + (1 - b) * G^2,  t = step' = step + 1
            w' = w - lr * sqrt(1 - b^t) / (1 - momentum^t) * m' / (sqrt(v') + e) - lr * decay * w

(FedProx: Li et al. 2020, arXiv:1812.06127, eq. 2; SCAFFOLD: Karimireddy et al. 2020, arXiv:1910.06378, Alg. 1 line 10;
Adam: Kingma and Ba 2015, arXiv:1412.6980, end of section 2; decay apart from the gradient: Loshchilov and Hutter 2019,
arXiv:1711.05101.)
"""

from typing import Literal

import msgspec

Optimizer = Literal["sgd", "adam"]
ADAM_BETA2, ADAM_EPSILON = 0.999, 1e-7  # Keras' own


class TensorSpec(msgspec.Struct, frozen=True):
    """A named float32 weight: `name` is the model's own, its shape in entries."""

    name: str
    shape: list[int]


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent must know to call the signature. What has a default was not there in the first bundles.

    Attributes:
        batch: samples in one call; shorter batches are padded and masked.
        weights: trainable, in the order of w000, w001, ...
        state: not trainable, in the order of s000, s001, ...
        optimizers: that the file has a signature for.
        decay: whether the signatures take weight decay.
    """

    batch: int
    weights: list[TensorSpec]
    state: list[TensorSpec]
    optimizers: list[Optimizer] = msgspec.field(default_factory=lambda: ["sgd"])
    decay: bool = False


SIGNATURES: dict[Optimizer, str] = {"sgd": "train", "adam": "train_adam"}
INFER = "infer"


def names(letter: str, count: int) -> list[str]:
    """Input names of a group, for example `w000`, `w001`."""
    return [f"{letter}{index:03d}" for index in range(count)]


def moments(optimizer: Optimizer) -> str:
    """Letters of an optimiser's state."""
    return "mv" if optimizer == "adam" else "m"


def scalars(optimizer: Optimizer, spec: TrainingSpec) -> list[str]:
    """Names of a signature's scalars, in its order."""
    return ["lr", "momentum", "mu", *(["decay"] if spec.decay else []), *(["step"] if optimizer == "adam" else [])]
