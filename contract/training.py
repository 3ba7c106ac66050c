"""The training signature: how a stateless `.tflite` is called to take one SGD step, and nothing more.

Signature `train`, inputs            shape
    w000, w001, ...                  trainable weights, in the manifest's order
    s000, s001, ...                  state that is not trained (BatchNorm moments), may be none
    m000, m001, ...                  momentum, one for each w
    a000, a001, ...                  proximal anchor: the global weights of the round, one for each w
    g000, g001, ...                  gradient offset (SCAFFOLD: c - c_i), one for each w
    x                                (batch, *input) model input, float32
    y                                (batch,) int32 class
    mask                             (batch,) float32: 1 counts a sample, 0 is padding
    lr, momentum, mu                 scalars, float32
outputs
    w..., s..., m...                 new values
    loss                             mean cross-entropy of the counted samples, without the proximal term
    correct                          counted samples whose top class was right

Signature `infer`, inputs w..., s..., x; output `logits` (batch, classes).

With G = grad(loss) + mu * (w - a) + g:  m' = momentum * m + G,  w' = w - lr * m'
(FedProx: Li et al. 2020, arXiv:1812.06127, eq. 2; SCAFFOLD: Karimireddy et al. 2020, arXiv:1910.06378, Alg. 1 line 10).
"""

import msgspec


class TensorSpec(msgspec.Struct, frozen=True):
    """A named float32 weight: `name` is the model's own, its shape in entries."""

    name: str
    shape: list[int]


class TrainingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent must know to call the signature.

    Attributes:
        batch: samples in one call; shorter batches are padded and masked.
        weights: trainable, in the order of w000, w001, ...
        state: not trainable, in the order of s000, s001, ...
    """

    batch: int
    weights: list[TensorSpec]
    state: list[TensorSpec]


TRAIN = "train"
INFER = "infer"


def names(letter: str, count: int) -> list[str]:
    """Input names of a group, for example `w000`, `w001`."""
    return [f"{letter}{index:03d}" for index in range(count)]
