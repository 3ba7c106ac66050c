"""A device measures a signed bundle where its owner allows it, in a child process, and never activates it."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from contract.messages import BlobRef, BundleRef, Instruction
from edge_agent import bench, runtime, selftest
from edge_agent.bench import Bench
from edge_agent.config import Remote
from edge_agent.errors import RefusedError, TrustError, UnavailableError
from edge_agent.placement import Placement, Probation, Slot
from edge_agent.slots import Slots
from edge_agent.state import State
from edge_agent.trust import Target
from tests.fakes import agent_bundles
from tests.fakes.agent_parts import CONFIG

DATA = agent_bundles.make()
REF = agent_bundles.ref(DATA)


class Stage:
    """A Bench over a real folder and state, whose bundle comes from memory."""

    def __init__(self, folder: Path, *, allowed: bool = True) -> None:
        self.folder, self.uptime, self.pulls = folder, 0.0, 0
        self.target: Target | TrustError = Target(len(DATA), REF.sha256)
        self.data = DATA
        self.room: RefusedError | None = None
        self.state = State(folder / "state.sqlite", outbox_id="o")
        self.slots = Slots(folder / "slots")
        self.updating, self.stopping = threading.Lock(), threading.Event()
        self.bench = Bench(
            msgspec.structs.replace(CONFIG, remote=Remote(bench=allowed, bench_pause_s=60.0)),
            state=self.state,
            slots=self.slots,
            trusted=self._trusted,
            check_room=self._check_room,
            pull=self._pull,
            updating=self.updating,
            stopping=self.stopping,
            monotonic=lambda: self.uptime,
        )

    def _trusted(self, _path: str) -> Target:
        if isinstance(self.target, TrustError):
            raise self.target
        return self.target

    def _check_room(self, _sha256: str, _size: int) -> None:
        if self.room is not None:
            raise self.room

    def _pull(self, blob: BlobRef, _give_up: Callable[[], bool]) -> Path:
        assert (blob.sha256, blob.size) == (REF.sha256, len(DATA))
        self.pulls += 1
        path = self.folder / "pulled.part"
        path.write_bytes(self.data)
        return path

    def run(self, ref: BundleRef = REF) -> bench.Measured:
        return self.bench.run(ref, lambda: False)

    def serve(self, *, probation: Probation | None = None) -> None:
        slot = Slot(name="a", bundle=REF, rollout=None, activated_at=0.0)
        path = self.folder / "incoming"
        path.write_bytes(DATA)
        self.slots.stage(slot, path)
        with self.state.transaction():
            self.state.models.put(REF.model, Placement(active=slot, probation=probation))


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    yield made
    made.state.close()


def test_a_bundle_is_measured_in_a_child_and_nothing_of_it_stays(stage: Stage) -> None:
    found = stage.run()
    assert 0 < found.p50_us <= found.p95_us
    assert 0 < found.p50_threads_us <= found.p95_threads_us
    assert found.load_us > 0
    assert found.threads >= 1
    assert found.calls == runtime.TIMED_CALLS // 3
    assert 10_000_000 < found.peak_bytes < 500_000_000
    assert found.runtime.startswith("ai-edge-litert ")
    assert (stage.pulls, (stage.folder / "pulled.part").exists()) == (1, False)
    assert stage.state.models.all() == {}
    assert not stage.updating.locked()


def test_a_bundle_that_lies_in_a_slot_is_not_pulled_again(stage: Stage) -> None:
    stage.serve()
    assert stage.run().p50_us > 0
    assert stage.pulls == 0
    assert stage.slots.path(stage.state.models.get(REF.model).active).is_file()  # type: ignore[arg-type]


def test_nobody_may_ask_where_the_owner_did_not_say_so(tmp_path: Path) -> None:
    stage = Stage(tmp_path, allowed=False)
    with pytest.raises(RefusedError, match=r"remote\.bench = true"):
        stage.run()
    stage.state.close()
    assert Remote().bench is False


def test_one_measurement_in_a_while_is_enough(stage: Stage) -> None:
    stage.run()
    stage.uptime = 59.0
    with pytest.raises(RefusedError, match="one measurement in 60 s"):
        stage.run()
    stage.uptime = 60.0
    stage.run()


def test_a_device_that_updates_trains_or_watches_a_new_bundle_is_busy(stage: Stage) -> None:
    with stage.updating, pytest.raises(RefusedError, match="busy with an update"):
        stage.run()
    stage.serve(probation=Probation())
    with pytest.raises(RefusedError, match="on probation"):
        stage.run()
    stage.serve()
    instruction = Instruction(
        id="i",
        run="r",
        round=1,
        kind="train",
        bundle_sha256=REF.sha256,
        weights=BlobRef("c" * 64, 1),
        seed=0,
        max_samples=1,
        expires_at=2e9,
    )
    assert stage.state.add_instruction(instruction, at=0.0)
    with pytest.raises(RefusedError, match="busy with training"):
        stage.run()
    stage.state.instruction_done("i")
    assert stage.run().p50_us > 0  # a refusal is not a measurement: there was no pause


def test_what_nobody_signed_is_not_pulled(stage: Stage) -> None:
    for target in (TrustError("names no such target"), Target(len(DATA), "d" * 64)):
        stage.target, stage.uptime = target, stage.uptime + 60
        with pytest.raises(RefusedError, match=r"no such target|another SHA-256"):
            stage.run()
    assert stage.pulls == 0


def test_nothing_is_thrown_away_to_make_room_for_a_measurement(stage: Stage) -> None:
    stage.room = RefusedError("no room for 1000 bytes")
    with pytest.raises(RefusedError, match="no room"):
        stage.run()
    assert stage.pulls == 0


def test_a_bundle_of_other_bytes_and_one_for_other_devices_are_refused(stage: Stage) -> None:
    stage.data = DATA[:-10]
    with pytest.raises(RefusedError, match="SHA-256"):
        stage.run()
    assert not (stage.folder / "pulled.part").exists()
    stage.target, stage.uptime = Target(len(DATA), REF.sha256, hardware_classes=["nano"]), 60.0
    with pytest.raises(RefusedError, match="nano"):
        stage.run()


def test_an_agent_that_ends_gives_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_POLL_S", 0.001)
    stage.stopping.set()
    with pytest.raises(UnavailableError, match="the agent ends"):
        stage.run()
    assert not stage.updating.locked()


def test_a_slow_model_is_called_less_often() -> None:
    from contract.bundle import unpack
    from edge_agent.runtime import Runtime

    made = unpack(DATA)
    x = made.transform.apply(made.golden["x"])
    assert len(runtime.latency(Runtime(made.files["inference"]), x, longest_s=0.0)) == 1
    assert len(runtime.latency(Runtime(made.files["inference"]), x, calls=30)) == 10
