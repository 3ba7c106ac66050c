"""One instruction, carried out or refused with a reason: the child's core, and the parent around a real child."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from contract import tensors
from contract.errors import ContractError
from contract.messages import BlobRef, Instruction, RoundReply, UploadBlock
from edge_agent.errors import AgentError, UnavailableError
from edge_agent.rounds import Rounds
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.samplestore import SampleStore
from edge_agent.trainer import Job, carry_out
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts

WEIGHTS = tensors.dump(agent_models.weights())
ZEROS = tensors.dump({name: np.zeros_like(array) for name, array in agent_models.weights().items()})


def _instruction(bundle: bytes, weights: bytes = WEIGHTS, **fields: Any) -> Instruction:
    base = Instruction(
        id="i1",
        run="run",
        round=1,
        kind="train",
        bundle_sha256=agent_bundles.ref(bundle).sha256,
        weights=BlobRef(hashlib.sha256(weights).hexdigest(), len(weights)),
        expires_at=5000.0,
    )
    return msgspec.structs.replace(base, **fields)


def _job(folder: Path, bundle: bytes, y: np.ndarray | None = None, **fields: Any) -> Job:
    (folder / "bundle.zip").write_bytes(bundle)
    files = []
    for index in range(3):
        x, labels = agent_models.samples(20, seed=index)
        path = folder / f"{index:03d}.safetensors"
        path.write_bytes(tensors.dump({"x": x, "y": labels if y is None else y}))
        files.append(str(path))
    return Job(
        instruction=_instruction(bundle, **fields),
        bundle=str(folder / "bundle.zip"),
        files=files,
        max_samples=2000,
        options=RuntimeOptions(),
        parent=0,
    )


def test_training_gives_an_update_of_the_same_names_and_metrics(tmp_path: Path) -> None:
    job = _job(tmp_path, agent_bundles.make(), epochs=5, learning_rate=0.5)
    reply, update = carry_out(job, ZEROS)
    assert (reply.error, reply.examples, set(reply.metrics)) == ("", 60, {"loss", "accuracy"})
    assert reply.weights == BlobRef(hashlib.sha256(update).hexdigest(), len(update))
    tensors.check_like(tensors.load(update), agent_models.weights())


def test_evaluation_gives_metrics_and_counts_and_no_weights(tmp_path: Path) -> None:
    reply, update = carry_out(_job(tmp_path, agent_bundles.make(), kind="evaluate"), WEIGHTS)
    assert (update, reply.weights, reply.metrics["accuracy"]) == (b"", None, 1.0)
    assert reply.metrics["loss"] < 0.1
    assert reply.counts is not None
    assert reply.counts.samples == sum(reply.counts.predictions) == 60
    hotter, _ = carry_out(_job(tmp_path, agent_bundles.make(temperature=20.0), kind="evaluate"), WEIGHTS)
    assert hotter.counts is not None
    assert hotter.counts.confidence_sum < reply.counts.confidence_sum
    assert hotter.metrics == reply.metrics


def test_no_more_samples_than_allowed_are_used_and_the_newest_first(tmp_path: Path) -> None:
    job = _job(tmp_path, agent_bundles.make(), max_samples=30)
    assert carry_out(job, WEIGHTS)[0].examples == 30
    assert carry_out(msgspec.structs.replace(job, max_samples=7), WEIGHTS)[0].examples == 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": tensors.dump({"other": np.zeros(3, np.float32)})}, "expected tensors"),
        ({"weights": b"no tensors"}, "tensor"),
        ({"bundle": {"training": None}}, "no training signature"),
        ({"y": np.full(20, 3)}, "outside the bundle's 3 classes"),
        ({"bundle_sha256": "0" * 64}, "SHA-256"),
    ],
)
def test_what_cannot_be_done_says_why(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    fields = {"bundle_sha256": change["bundle_sha256"]} if "bundle_sha256" in change else {}
    job = _job(tmp_path, agent_bundles.make(**change.get("bundle", {})), change.get("y"), **fields)
    with pytest.raises((AgentError, ContractError), match=reason):
        carry_out(job, change.get("weights", WEIGHTS))


class Bench:
    """Rounds around a real child, with a served bundle and a pull from memory."""

    def __init__(self, root: Path) -> None:
        self.parts = parts = Parts(root)
        self.bundle = agent_bundles.make()
        parts.sign(self.bundle)
        parts.want(1, self.bundle)
        parts.state.forget("o", parts.state.pending(10))
        x, y = agent_models.samples(30, seed=0)
        self.files = [root / "000.safetensors"]
        self.files[0].write_bytes(tensors.dump({"x": x, "y": y}))
        self.stopping = threading.Event()
        self.silent = False
        self.store = SampleStore(root / "samples", quota_bytes=10**6, keep_s=1.0, clock=lambda: 0.0, event=print)
        self.rounds = Rounds(
            CONFIG,
            staging=parts.folder.staging,
            state=parts.state,
            slots=parts.slots,
            serving=parts.serving,
            files=lambda: self.files,
            pull=self._pull,
            clock=lambda: parts.now,
            stopping=self.stopping,
            store=self.store,
        )

    def _pull(self, blob: BlobRef, give_up: Callable[[], bool]) -> Path:
        if self.silent:
            raise UnavailableError("nobody answered")
        path = self.parts.folder.staging / f"{blob.sha256}.part"
        path.write_bytes(WEIGHTS)
        return path

    def bodies(self) -> list[Any]:
        reports = [self.parts.state.read_report(seq) for seq in self.parts.state.pending(100)]
        return [report.body for report in reports if report]

    def begin(self, **fields: Any) -> None:
        self.parts.state.add_instruction(_instruction(self.bundle, **fields), at=self.parts.now)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.parts.state.close()


def test_a_round_puts_the_update_before_its_reply_and_leaves_nothing_behind(bench: Bench) -> None:
    bench.begin()
    assert bench.rounds.tick()
    block, reply = bench.bodies()
    assert isinstance(block, UploadBlock)
    assert isinstance(reply, RoundReply)
    assert (reply.error, reply.weights) == ("", block.blob)
    assert hashlib.sha256(block.data).hexdigest() == block.blob.sha256
    assert not bench.rounds.tick()
    assert list(bench.parts.folder.staging.iterdir()) == []


def test_weights_that_do_not_come_are_waited_for_until_the_instruction_expires(bench: Bench) -> None:
    bench.begin()
    bench.silent = True
    with pytest.raises(UnavailableError):
        bench.rounds.tick()
    assert bench.bodies() == []
    bench.parts.now = 6000.0
    assert bench.rounds.tick()
    assert "expired" in bench.bodies()[0].error


def test_a_device_without_labels_or_with_another_bundle_refuses(bench: Bench) -> None:
    bench.begin(bundle_sha256="0" * 64)
    bench.rounds.tick()
    assert "the instruction is for 000000000000" in bench.bodies()[0].error
    bench.files = []
    bench.begin(id="i2")
    bench.rounds.tick()
    assert bench.bodies()[1].error == "no labelled samples on this device"


def test_training_that_fails_in_the_child_is_a_reply_with_its_reason(bench: Bench) -> None:
    bench.begin(learning_rate=float("inf"), epochs=3)
    bench.rounds.tick()
    assert "diverged" in bench.bodies()[0].error


def test_an_agent_that_ends_leaves_the_instruction_for_its_next_start(bench: Bench) -> None:
    bench.begin(epochs=1_000_000)
    bench.stopping.set()
    with pytest.raises(UnavailableError):
        bench.rounds.tick()
    assert bench.bodies() == []
    assert bench.parts.state.next_instruction() is not None
    assert list(bench.parts.folder.staging.iterdir()) == []


def test_training_uses_kept_samples_beside_files_and_says_which_are_damaged(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "samples", quota_bytes=10**6, keep_s=100.0, clock=lambda: 50.0, event=print)
    for seed in range(3):
        store.add("thirds", *agent_models.samples(10, seed=seed))
    bundle = agent_bundles.make()
    job = msgspec.structs.replace(_job(tmp_path, bundle), store=str(store.folder), store_not_before=store.not_before())
    damaged: list[int] = []
    assert carry_out(job, ZEROS, damaged=damaged.append)[0].examples == 90
    alone = msgspec.structs.replace(job, files=[])
    reply, _ = carry_out(msgspec.structs.replace(alone, instruction=_instruction(bundle, kind="evaluate")), WEIGHTS)
    assert (reply.examples, reply.metrics["accuracy"]) == (30, 1.0)
    (segment,) = store.folder.glob("*/*.seg")
    content = bytearray(segment.read_bytes())
    content[len(content) // 2] ^= 1
    segment.write_bytes(content)
    assert carry_out(job, ZEROS, damaged=damaged.append)[0].examples == 80
    assert damaged == [0, 1]
    with pytest.raises(AgentError, match="no labelled samples"):
        carry_out(msgspec.structs.replace(alone, store_not_before=51.0), ZEROS)


def test_a_round_on_kept_samples_alone_notes_damage_as_an_event(bench: Bench) -> None:
    bench.files = []
    bench.begin()
    bench.rounds.tick()
    for seed in range(2):
        bench.store.add("thirds", *agent_models.samples(10, seed=seed))
    (segment,) = bench.store.folder.glob("*/*.seg")
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    bench.begin(id="i2")
    bench.rounds.tick()
    without, _, reply = bench.bodies()
    assert without.error == "no labelled samples on this device"
    assert (reply.error, reply.examples) == ("", 10)
    event = bench.parts.state.last_event("samples")
    assert event is not None
    assert event.text.startswith("1 records of kept samples are damaged or were tampered with")
    assert bench.parts.state.get("samples_damaged", int, 0) == 1
