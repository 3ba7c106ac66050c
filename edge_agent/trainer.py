"""One instruction carried out in a process of its own, at low priority: `python -m edge_agent.trainer FOLDER`.

The folder holds `job.msgpack` and `weights.safetensors`; the child leaves `reply.msgpack` and, after training,
`update.safetensors`. Its memory goes back to the device when it ends, and it ends when its parent dies.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np

from contract import codec, limits, tensors
from contract.bundle import Bundle
from contract.errors import ContractError
from contract.messages import BlobRef, Instruction, RoundReply
from contract.profile import count
from edge_agent import lean, samples, samplestore, slots, training
from edge_agent.errors import AgentError, SampleError, TrainingError
from edge_agent.files import write_atomically
from edge_agent.runtime import softmax
from edge_agent.runtime_backend import RuntimeOptions

JOB, WEIGHTS, REPLY, UPDATE = "job.msgpack", "weights.safetensors", "reply.msgpack", "update.safetensors"
DAMAGED = "damaged"  # how many kept samples' records could not be read


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What the child needs: instruction, bundle file, samples, limits, and whose child it is.

    Attributes:
        files: of samples, oldest first.
        store: folder of kept samples (`samplestore`); empty is none.
        store_not_before: of the store's clock; earlier samples have expired.
    """

    instruction: Instruction
    bundle: str
    files: list[str]
    store: str = ""
    store_not_before: float = 0.0
    max_samples: int
    options: RuntimeOptions
    parent: int


def failed(instruction: Instruction, reason: str) -> RoundReply:
    """The reply to an instruction that was not carried out."""
    return RoundReply(instruction=instruction.id, error=reason[:500], examples=0, metrics={}, weights=None, counts=None)


def carry_out(
    job: Job,
    weights: bytes,
    *,
    orphaned: Callable[[], bool] = lambda: False,
    damaged: Callable[[int], None] = lambda _records: None,
) -> tuple[RoundReply, bytes]:
    """Do one instruction.

    Args:
        job: what to do, with what.
        weights: safetensors with the global weights; their digest was verified.
        orphaned: asked before every step; training stops when it says so.
        damaged: hears of kept samples that were passed over because they are not what was written.

    Returns:
        The reply, and the new weights as safetensors (empty after an evaluation).

    Raises:
        AgentError, ContractError: it cannot be done; the message is for the coordinator.
    """
    instruction = job.instruction
    bundle = slots.parse(Path(job.bundle).read_bytes(), instruction.bundle_sha256)
    spec = bundle.manifest.training
    if spec is None:
        raise TrainingError("the active bundle has no training signature")
    start = tensors.load(weights)
    tensors.check_like(start, tensors.load(bundle.files["weights"]))
    del weights
    for role in ("weights", "inference"):  # as large as the weights each, and of no further use
        del bundle.files[role]
    local = _local(job, bundle, damaged)
    y = _labels(local, len(bundle.manifest.labels))
    x = bundle.transform.apply(local.x)
    runtime = training.TrainingRuntime(bundle.files["training"], spec, job.options)
    del local  # the transformed samples are enough
    lean.settle()  # steps need memory; what loading left behind would stand beside it
    if instruction.kind == "evaluate":
        return _evaluate(instruction, bundle, training.infer(runtime, start, x), x, y), b""
    result = training.train(
        runtime,
        start,
        x,
        y,
        epochs=instruction.epochs,
        learning_rate=instruction.learning_rate,
        optimizer=instruction.optimizer,
        momentum=instruction.momentum,
        weight_decay=instruction.weight_decay,
        proximal_mu=instruction.proximal_mu,
        seed=instruction.seed,
        should_stop=_Trimming(orphaned),
    )
    del runtime, start, x  # the most memory is what steps take
    update = tensors.dump(result.weights)
    reply = RoundReply(
        instruction=instruction.id,
        error="",
        examples=result.examples,
        metrics={"loss": result.loss, "accuracy": result.accuracy},
        weights=BlobRef(hashlib.sha256(update).hexdigest(), len(update)),
        counts=None,
    )
    return reply, update


class _Trimming:
    """Asks before each step, and before the second gives back what the first let go of."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked, self._calls = asked, 0

    def __call__(self) -> bool:
        self._calls += 1
        if self._calls == 2:
            lean.settle()
        return self._asked()


def _local(job: Job, bundle: Bundle, damaged: Callable[[int], None]) -> samples.Samples:
    """The newest labelled samples, of files and of the store."""
    limit = min(job.max_samples, job.instruction.max_samples)
    shape = tuple(bundle.transform.spec.input_shape)
    kept, files = None, None
    if job.store:
        kept, records = samplestore.newest(
            Path(job.store), bundle.manifest.model, input_shape=shape, limit=limit, not_before=job.store_not_before
        )
        damaged(records)
    with suppress(SampleError):
        files = samples.newest_labelled([Path(file) for file in job.files], limit)
    if kept is not None and files is not None and files.x.shape[1:] != shape:
        files = None  # of another model
    return samples.join(files, kept, limit)


def _labels(local: samples.Samples, classes: int) -> np.ndarray:
    if local.y is None or local.y.min() < 0 or local.y.max() >= classes:
        raise TrainingError(f"a label on this device is outside the bundle's {classes} classes")
    return local.y


def _evaluate(
    instruction: Instruction,
    bundle: Bundle,
    logits: np.ndarray,
    x: np.ndarray,
    y: np.ndarray,
) -> RoundReply:
    right = softmax(logits)[np.arange(len(y)), y]
    probabilities = softmax(logits, bundle.manifest.temperature)
    return RoundReply(
        instruction=instruction.id,
        error="",
        examples=len(y),
        metrics={
            "loss": float(-np.log(np.maximum(right, 1e-12)).mean()),
            "accuracy": float((logits.argmax(axis=1) == y).mean()),
        },
        weights=None,
        counts=count(bundle.profile.spec, bundle.transform.features(x), probabilities),
    )


def main() -> None:
    """The child: one job folder in, reply and update in the same folder out."""
    folder = Path(sys.argv[1])
    with suppress(OSError):  # where a service manager forbids it, it is as urgent as the agent
        os.nice(10)
    job = codec.decode((folder / JOB).read_bytes(), Job, limit=limits.ARTIFACT_BYTES)

    def orphaned() -> bool:
        return os.getppid() != job.parent

    try:
        reply, update = carry_out(
            job,
            (folder / WEIGHTS).read_bytes(),
            orphaned=orphaned,
            damaged=lambda records: write_atomically(folder / DAMAGED, str(records).encode()),
        )
    except (AgentError, ContractError) as error:
        reply, update = failed(job.instruction, str(error)), b""
    if orphaned():
        sys.exit(1)  # the agent was killed; its next start begins again
    if update:
        write_atomically(folder / UPDATE, update)
    write_atomically(folder / REPLY, codec.encode(reply))


if __name__ == "__main__":
    main()
