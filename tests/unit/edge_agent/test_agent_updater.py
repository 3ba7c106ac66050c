"""The updater: what holds is activated, what does not is refused, and the old slot serves on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from contract.messages import Desired, Wanted
from edge_agent.config import Config
from edge_agent.errors import HeldError, UnavailableError
from edge_agent.updater import Updater
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.state.close()


def test_two_bundles_in_turn_use_both_slots_and_the_newer_one_serves(parts: Parts) -> None:
    for version in (1, 2, 3):
        bundle = agent_bundles.make(version=version)
        parts.sign(bundle)
        parts.want(version, bundle)
        assert parts.served() == version
        parts.settle()
    placement = parts.state.models.get("thirds")
    active, previous = placement.active, placement.previous
    assert active is not None
    assert previous is not None
    assert (active.name, active.bundle.version, previous.name, previous.bundle.version) == ("a", 3, "b", 2)
    assert [receipt.outcome for receipt in parts.receipts()] == ["activated", "healthy"] * 3


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"golden_shift": 1.0}, "golden vectors"),
        ({"hardware_classes": ["tpu", "npu"]}, "for tpu, npu; this is generic"),
        ({"min_agent_version": "0.10.0"}, "needs agent 0.10.0"),
        ({"min_agent_version": "soon"}, "not numbers with dots"),
        ({"min_runtime_version": "ai-edge-litert 2.10.0"}, "has ai-edge-litert 2.3.0"),
        ({"min_runtime_version": "tflite-runtime 2.1.0"}, "needs runtime tflite-runtime 2.1.0"),
    ],
)
def test_a_bundle_that_does_not_belong_here_is_refused(parts: Parts, manifest: dict, reason: str) -> None:
    good, bad = agent_bundles.make(), agent_bundles.make(version=2, **manifest)
    for bundle in (good, bad):
        parts.sign(bundle)
    parts.want(1, good)
    parts.want(2, bad, "r2")
    assert parts.served() == 1
    receipt = parts.receipts()[-1]
    assert (receipt.outcome, receipt.rollout, receipt.bundle.version) == ("refused", "r2", 2)
    assert reason in receipt.reason
    refused = parts.state.last_event("refused")
    assert refused is not None
    assert reason in refused.text


@pytest.mark.parametrize(
    ("custom", "reason"),
    [
        ({"hardware_classes": ["tpu"]}, "for tpu; this is generic"),
        ({"min_agent_version": "99.0"}, "needs agent 99.0"),
        ({"min_runtime_version": "ai-edge-litert 9.0"}, "needs runtime ai-edge-litert 9.0"),
    ],
)
def test_what_the_signed_metadata_says_is_checked_before_anything_is_fetched(
    parts: Parts, custom: dict, reason: str
) -> None:
    bundle = agent_bundles.make()
    parts.sign(bundle)
    parts.custom = custom
    parts.content.clear()  # a pull would fail with another reason
    parts.content[agent_bundles.ref(bundle).sha256] = b""
    parts.want(1, bundle)
    (receipt,) = parts.receipts()
    assert (receipt.outcome, reason in receipt.reason) == ("refused", True)
    assert not (parts.folder.staging / "pulled").exists()


def test_every_flipped_byte_is_refused_and_the_old_slot_serves(parts: Parts) -> None:
    good, next_one = agent_bundles.make(), agent_bundles.make(version=2)
    parts.sign(good)
    parts.want(1, good)
    parts.sign(next_one)
    ref = agent_bundles.ref(next_one)
    for revision, position in enumerate(range(0, len(next_one), len(next_one) // 8), start=2):
        flipped = bytearray(next_one)
        flipped[position] ^= 0x10
        parts.content[ref.sha256] = bytes(flipped)
        parts.want(revision, next_one)
        assert "SHA-256" in parts.receipts()[-1].reason
    assert parts.served() == 1
    assert not (parts.folder.staging / "pulled").exists()


def test_a_signed_file_that_is_no_bundle_is_refused(parts: Parts) -> None:
    junk = b"not a zip"
    ref = msgspec.structs.replace(agent_bundles.ref(agent_bundles.make()), sha256=hashlib.sha256(junk).hexdigest())
    parts.signed[ref.target] = ref.sha256
    parts.content[ref.sha256] = junk
    parts.want(1, ref, None)
    assert "not a bundle" in parts.receipts()[-1].reason


def test_a_bundle_that_calls_itself_something_else_is_refused(parts: Parts) -> None:
    bundle = agent_bundles.make(version=2)
    ref = msgspec.structs.replace(agent_bundles.ref(bundle), version=3)
    parts.sign(bundle)
    parts.want(1, ref, None)
    assert "wanted is thirds:3" in parts.receipts()[-1].reason


def test_metadata_that_names_another_digest_than_the_desired_state_is_refused(parts: Parts) -> None:
    bundle, other = agent_bundles.make(), agent_bundles.make(version=2)
    parts.sign(bundle)
    ref = msgspec.structs.replace(agent_bundles.ref(bundle), sha256=agent_bundles.ref(other).sha256)
    parts.want(1, ref, None)
    assert "the desired state" in parts.receipts()[-1].reason


def test_an_answered_revision_is_left_alone_and_a_new_rollout_of_the_same_bundle_is_answered(parts: Parts) -> None:
    bundle = agent_bundles.make()
    parts.sign(bundle)
    for _ in range(2):
        parts.want(3, bundle)
    parts.want(2, bundle, "older")
    assert len(parts.receipts()) == 1
    parts.want(4, bundle, "again")
    assert [receipt.rollout for receipt in parts.receipts()] == ["r", "again"]


def test_a_wish_that_the_owners_rules_hold_is_not_looked_up_and_not_answered(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = agent_bundles.make()
    parts.sign(bundle)
    held: list[tuple[str, int]] = []

    def check(model: str, wanted: Wanted) -> None:
        held.append((model, wanted.revision))
        if len(held) == 1:
            raise HeldError("waits for the maintenance window")

    monkeypatch.setattr(parts.updater, "_check_time", check)
    looked_up: list[str] = []
    real = parts.updater._trusted
    monkeypatch.setattr(parts.updater, "_trusted", lambda target: (looked_up.append(target), real(target))[1])
    with pytest.raises(HeldError):
        parts.want(1, bundle)
    assert (looked_up, parts.receipts(), parts.served()) == ([], [], None)
    parts.want(1, bundle)
    assert parts.served() == 1
    assert held == [("thirds", 1)] * 2


def test_nobody_answering_is_no_refusal(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = agent_bundles.make()

    def silent(_self: Updater, *_: object) -> None:
        raise UnavailableError("nobody answered")

    monkeypatch.setattr(Updater, "_fetch", silent)
    with pytest.raises(UnavailableError):
        parts.want(1, bundle)
    assert (parts.receipts(), parts.state.models.get("thirds").answered) == ([], 0)


def test_a_bundle_whose_self_test_was_broken_off_stays_for_the_next_try(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = agent_bundles.make()
    parts.sign(bundle)

    def ends(*_: object) -> int:
        raise UnavailableError("the agent ends")

    with monkeypatch.context() as broken:
        broken.setattr(parts.updater, "_self_test", ends)
        with pytest.raises(UnavailableError):
            parts.want(1, bundle)
    assert [path.read_bytes() for path in parts.folder.staging.iterdir()] == [bundle]
    with monkeypatch.context() as broken:
        broken.setattr(parts.switch, "_sign", ends)
        with pytest.raises(UnavailableError):
            parts.want(1, bundle)
    assert [path.read_bytes() for path in parts.folder.staging.iterdir()] == [bundle]
    parts.want(1, bundle)
    assert parts.served() == 1
    bad = agent_bundles.make(version=2, golden_shift=1.0)
    parts.sign(bad)
    parts.want(2, bad)
    assert parts.receipts()[-1].outcome == "refused"
    assert list(parts.folder.staging.iterdir()) == []


def test_a_commit_that_fails_leaves_the_old_model_and_no_receipt(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    good, next_one = agent_bundles.make(), agent_bundles.make(version=2)
    for bundle in (good, next_one):
        parts.sign(bundle)
    parts.want(1, good)
    monkeypatch.setattr(parts.state, "event", _full_disk)
    with pytest.raises(OSError, match="disk"):
        parts.want(2, next_one)
    assert parts.served() == 1
    active = parts.state.models.get("thirds").active
    assert active is not None
    assert active.bundle.version == 1
    assert len(parts.receipts()) == 1


def _full_disk(*_: object, **__: object) -> None:
    raise OSError("the disk is full")


def test_what_served_is_restored_and_a_broken_slot_gives_way_to_the_one_before(parts: Parts) -> None:
    for version in (1, 2):
        bundle = agent_bundles.make(version=version)
        parts.sign(bundle)
        parts.want(version, bundle)
    active = parts.state.models.get("thirds").active
    assert active is not None
    path = parts.slots.path(active)
    path.write_bytes(path.read_bytes()[:100])
    parts.state.close()
    again = Parts(parts.folder.root)
    try:
        again.switch.restore()
        assert again.served() == 1
        receipt = again.receipts()[-1]
        assert (receipt.outcome, receipt.bundle.version) == ("rolled-back", 2)
        assert again.state.models.get("thirds").answered == 0
        x, _ = agent_models.samples(3, seed=0)
        with again.serving.use("thirds") as model:
            assert model.infer(x).probabilities.shape == (3, 3)
    finally:
        again.state.close()


def test_a_device_of_the_right_class_takes_the_bundle(tmp_path: Path) -> None:
    config: Config = msgspec.structs.replace(CONFIG, hardware_class="npu")
    parts = Parts(tmp_path, config)
    bundle = agent_bundles.make(hardware_classes=["npu"])
    parts.sign(bundle)
    parts.want(1, bundle)
    assert parts.served() == 1
    parts.state.close()


def test_several_models_serve_side_by_side_and_each_is_answered_for_itself(parts: Parts) -> None:
    first, second = agent_bundles.make(), agent_bundles.make(model="fourths")
    bad = agent_bundles.make(model="fourths", version=2, golden_shift=1.0)
    for bundle in (first, second, bad):
        parts.sign(bundle)
    parts.want(1, first)
    parts.want(2, second)
    assert [ref.model for ref in parts.serving.bundles()] == ["fourths", "thirds"]
    assert parts.serving.only() is None
    parts.want(3, bad)
    assert (parts.served("thirds"), parts.served("fourths")) == (1, 1)
    assert [receipt.outcome for receipt in parts.receipts()] == ["activated", "activated", "refused"]


def test_a_model_that_is_not_wanted_any_more_goes_with_its_slots_and_nothing_else_does(parts: Parts) -> None:
    first, second = agent_bundles.make(), agent_bundles.make(model="fourths")
    for revision, bundle in enumerate((first, second), start=1):
        parts.sign(bundle)
        parts.want(revision, bundle)
    parts.wanted["thirds"] = Wanted(revision=3, rollout=None, bundle=None)
    for _ in range(2):
        parts.updater.apply(Desired(revision=3, models=parts.wanted))
    assert (parts.serving.names(), sorted(path.name for path in parts.folder.slots.iterdir())) == (
        ["fourths"],
        ["fourths"],
    )
    with pytest.raises(UnavailableError, match="no model 'thirds'"), parts.serving.use("thirds"):
        pass
    assert parts.state.last_event("removed") is not None
    parts.want(4, first)
    assert parts.served() == 1


def test_a_model_that_nobody_answers_for_does_not_keep_the_others_waiting(parts: Parts) -> None:
    first, second = agent_bundles.make(model="a-first"), agent_bundles.make()
    parts.sign(second)
    parts.signed[agent_bundles.ref(first).target] = "silence"
    parts.wanted["a-first"] = Wanted(revision=1, rollout=None, bundle=agent_bundles.ref(first))
    with pytest.raises(UnavailableError):
        parts.want(2, second)
    assert (parts.serving.names(), parts.state.models.get("a-first").answered) == (["thirds"], 0)
