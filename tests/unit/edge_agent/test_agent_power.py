"""Every write, flush, rename, removal and commit of an update's whole life fails once, and the power goes at each.

The life: a first bundle comes and is found good; a second one comes and is rolled back by itself; a third one comes, is
found good and is rolled back by a person; a fourth one comes while the first is tried again; the model is removed. The
walk goes step by step: each begins from the folder that the step before left.
"""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from contract.messages import BlobRef, Desired, Wanted
from edge_agent import files
from edge_agent.config import Health
from edge_agent.errors import AgentError
from edge_agent.probation import roll_back_by_hand
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts
from tests.fakes.faulty_disk import KINDS, FaultyDisk, Kind, PowerLoss

BUNDLES = {version: agent_bundles.make(version=version) for version in (1, 2, 3, 4)}
X, _ = agent_models.samples(4, seed=0)


class Device(Parts):
    """Parts on a disk that may fail; `disk` counts from when the device has started."""

    def __init__(self, root: Path, disk: FaultyDisk | None = None) -> None:
        self.disk = disk
        super().__init__(root, msgspec.structs.replace(CONFIG, health=Health(max_rollbacks=1)))
        for bundle in BUNDLES.values():
            self.sign(bundle)
        if disk is not None:
            disk.attach(self.state)
        self.switch.restore()

    def _pull(self, blob: BlobRef, give_up: Callable[[], bool]) -> Path:
        path = super()._pull(blob, give_up)
        if self.disk is not None:
            self.disk.unflushed(path)
        return path

    def active(self) -> int | None:
        active = self.state.models.get("thirds").active
        return active.bundle.version if active else None

    def wish(self, revision: int, version: int | None) -> None:
        self.now = 1000.0 + revision
        bundle = agent_bundles.ref(BUNDLES[version]) if version else None
        wanted = Wanted(revision=revision, rollout=f"r{revision}", bundle=bundle)
        self.updater.apply(Desired(revision=revision, models={"thirds": wanted}))

    def find_good(self) -> None:
        placement = self.state.models.get("thirds")
        if placement.probation is not None and placement.active is not None:
            self.switch.settle("thirds", of=placement.active)

    def find_bad(self, version: int) -> None:
        if self.active() == version:
            self.switch.roll_back("thirds", "on probation: it did badly")

    def by_hand(self, version: int) -> None:
        if self.active() == version:
            roll_back_by_hand(self.state, self.switch, "thirds")


Step = Callable[[Device], None]
STEPS: dict[str, tuple[Step, int | None, int | None]] = {  # what happens, what served before and what serves after
    "the first bundle comes": (lambda device: device.wish(1, 1), None, 1),
    "it is found good": (lambda device: device.find_good(), 1, 1),
    "a second one comes": (lambda device: device.wish(2, 2), 1, 2),
    "it is rolled back by itself": (lambda device: device.find_bad(2), 2, 1),
    "a third one comes": (lambda device: device.wish(3, 3), 1, 3),
    "it is found good, too": (lambda device: device.find_good(), 3, 3),
    "a person rolls it back": (lambda device: device.by_hand(3), 3, 1),
    "the second one must not come again": (lambda device: device.wish(4, 2), 1, 1),
    "a fourth one comes": (lambda device: device.wish(5, 4), 1, 4),
    "the first one comes while the fourth is on probation": (lambda device: device.wish(6, 1), 4, 1),
    "the model is taken off the device": (lambda device: device.wish(7, None), 1, None),
}
SAID = [
    ("activated", 1, "r1"), ("healthy", 1, "r1"), ("activated", 2, "r2"), ("rolled-back", 2, "r2"),
    ("activated", 3, "r3"), ("healthy", 3, "r3"), ("rolled-back", 3, "r3"), ("refused", 2, "r4"),
    ("activated", 4, "r5"), ("activated", 1, "r6"),
]  # fmt: skip


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder as it is before each step, and after the last."""
    root = tmp_path_factory.mktemp("life")
    folders, current = {}, root / "0"
    current.mkdir()
    for number, (name, (step, before, after)) in enumerate(STEPS.items(), start=1):
        folders[name] = current
        following = root / str(number)
        shutil.copytree(current, following)
        device = Device(following)
        assert device.served() == before
        step(device)
        assert device.served() == after
        device.state.close()
        current = following
    folders["the end"] = current
    return folders


Walk = Callable[[str, int, Kind], FaultyDisk]


@pytest.fixture
def walk(tmp_path: Path, life: dict[str, Path]) -> Walk:
    """Gives a copy of the folder before a step, on a disk with a fault at one point."""

    def begin(name: str, fail_at: int, kind: Kind) -> FaultyDisk:
        root, image = tmp_path / "device", tmp_path / "image"
        for path in (root, image):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(life[name], root)
        return FaultyDisk(root, image, fail_at=fail_at, kind=kind)

    return begin


def _said(device: Device) -> list[tuple[str, int, str | None]]:
    return [(receipt.outcome, receipt.bundle.version, receipt.rollout) for receipt in device.receipts()]


def _serves_a_whole_model(device: Device, allowed: set[int | None]) -> None:
    assert device.served() in allowed
    assert device.active() == device.served()
    if device.served() is not None:
        with device.serving.use("thirds") as model:
            assert model.infer(X).probabilities.shape == (4, 3)
        active = device.state.models.get("thirds").active
        assert active is not None
        device.slots.load(active)  # with the digest that was signed


def _is_found_without_its_memory(folder: Path, allowed: set[int | None]) -> None:
    for path in folder.glob("state.sqlite*"):
        path.unlink()
    device = Device(folder)
    _serves_a_whole_model(device, allowed)
    device.state.close()


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_any_point_leaves_one_whole_verified_model_and_each_receipt_once(
    name: str, kind: Kind, walk: Walk, life: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, before, after = STEPS[name]
    said_before, said_after = _receipts_of(life[name]), _receipts_of(_next(life, name))
    fail_at = 1
    while True:
        disk = walk(name, fail_at, kind)
        with monkeypatch.context() as broken:
            broken.setattr(files, "os", disk)
            device = None
            try:
                device = Device(disk._root, disk)
                started = disk.points
                step(device)
            except (PowerLoss, OSError, sqlite3.Error, AgentError):
                pass
            else:
                if disk.points < fail_at:  # no such point: every one was tried
                    device.state.close()
                    assert disk.points > started, "a step without a point tests nothing"
                    return
        hint = f"{kind} at point {fail_at} of {disk.names}"
        if kind == "error":
            assert device is not None, hint
            _serves_a_whole_model(device, {before, after})  # without a restart
            device.state.close()
            again = Device(disk._root)
            _serves_a_whole_model(again, {before, after})
            said = [(outcome, version) for outcome, version, _ in _said(again)]
            assert len(set(_said(again))) == len(said), hint
        else:
            if device is not None:
                device.state.close()
            without_memory = disk.image.with_name("without-memory")
            shutil.rmtree(without_memory, ignore_errors=True)
            shutil.copytree(disk.image, without_memory)
            again = Device(disk.image)
            _serves_a_whole_model(again, {before, after})
            not_swept = {before} if before is not None and before > (after or 0) else set()
            _is_found_without_its_memory(without_memory, {again.served(), after, *not_swept})
            assert _said(again) in (said_before, said_after), hint
            step(again)
            _serves_a_whole_model(again, {after})
            assert _said(again) == said_after, hint
            placement = again.state.models.get("thirds")
            kept = [slot for slot in (placement.active, placement.previous) if slot is not None]
            again.slots.sweep(again.state.models.all())
            assert len(list(again.folder.slots.rglob("bundle.zip"))) == len(kept), hint
        again.state.close()
        fail_at += 1


def _next(life: dict[str, Path], name: str) -> Path:
    names = list(life)
    return life[names[names.index(name) + 1]]


def _receipts_of(folder: Path) -> list[tuple[str, int, str | None]]:
    copy = folder.with_name(f"{folder.name}-read")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    device = Device(copy)
    try:
        return _said(device)
    finally:
        device.state.close()


def test_an_undisturbed_life_says_each_word_once(life: dict[str, Path]) -> None:
    assert _receipts_of(life["the end"]) == SAID
