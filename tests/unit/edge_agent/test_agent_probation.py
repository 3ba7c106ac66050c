"""A new bundle is on probation: it becomes good, or gives way to the one before and does not come again and again."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_agent.config import Health
from edge_agent.errors import RefusedError, RuntimeModelError
from edge_agent.health import Meter
from edge_agent.probation import BY_HAND, Probations, roll_back_by_hand
from edge_agent.serving import Broken
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts

HEALTH = Health(probation_s=30.0, probation_inferences=20, max_crashes=2)
X, _ = agent_models.samples(20, seed=0)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path, msgspec.structs.replace(CONFIG, health=HEALTH))
    yield made
    made.state.close()


def _probations(parts: Parts) -> Probations:
    return Probations(
        parts.config, state=parts.state, serving=parts.serving, switch=parts.switch, monotonic=lambda: parts.now
    )


def _again(parts: Parts) -> Parts:
    """The agent was killed and starts anew."""
    parts.state.close()
    made = Parts(parts.folder.root, parts.config)
    made.wanted = parts.wanted
    made.switch.restore()
    return made


def _install(parts: Parts, *versions: int) -> None:
    """Bundles one after another; all but the last are good."""
    for number, version in enumerate(versions):
        if number:
            parts.settle()
        bundle = agent_bundles.make(version=version)
        parts.sign(bundle)
        parts.want(version, bundle)
        assert parts.served() == version


def _outcomes(parts: Parts) -> list[tuple[str, int]]:
    return [(receipt.outcome, receipt.bundle.version) for receipt in parts.receipts()]


def _infer(parts: Parts, *, broken: bool = False) -> None:
    with parts.serving.use("thirds") as model:
        if broken:
            model._runtime.logits = lambda x: np.full((len(x), 3), np.nan, np.float32)  # type: ignore[method-assign]
            with pytest.raises(RuntimeModelError):
                model.infer(X)
        else:
            model.infer(X)


def test_a_bundle_that_does_well_is_good_and_says_so_once(parts: Parts) -> None:
    _install(parts, 1)
    probations = _probations(parts)
    probations.tick()
    _infer(parts)
    parts.now += 29.0
    assert not probations.tick()
    assert parts.state.models.get("thirds").probation is not None
    parts.now += 2.0
    for _ in range(2):
        probations.tick()
    assert parts.state.models.get("thirds").probation is None
    assert _outcomes(parts) == [("activated", 1), ("healthy", 1)]
    model = parts.serving.get("thirds")
    assert model is not None
    assert model.meter is None


def test_a_probation_may_end_in_the_middle_of_an_inference(parts: Parts) -> None:
    _install(parts, 1)
    model = parts.serving.get("thirds")
    assert model is not None

    class Last(Meter):
        """The thread that judges finds this to be enough."""

        def served(self, inferences: int, seconds: float, confidence: float) -> None:
            super().served(inferences, seconds, confidence)
            model.meter = None

    model.meter = last = Last(HEALTH)
    assert model.infer(X).probabilities.shape == (len(X), 3)
    assert last.read().inferences == len(X)


def test_a_bundle_that_does_badly_gives_way_and_the_fleet_hears_why(parts: Parts) -> None:
    _install(parts, 1, 2)
    probations = _probations(parts)
    _infer(parts, broken=True)
    assert probations.tick()
    assert parts.served() == 1
    _infer(parts)
    receipt = parts.receipts()[-1]
    assert (receipt.outcome, receipt.bundle.version, receipt.rollout) == ("rolled-back", 2, "r")
    assert "20 of 20 outputs were not finite" in receipt.reason
    parts.want(2, agent_bundles.ref(agent_bundles.make(version=2)))  # the same wish is answered
    assert _outcomes(parts)[-1] == ("rolled-back", 2)
    assert not probations.tick()


def test_a_bundle_that_was_rolled_back_too_often_is_refused_until_a_person_clears_it(parts: Parts) -> None:
    _install(parts, 1, 2)
    probations = _probations(parts)
    _infer(parts, broken=True)
    probations.tick()
    bad = agent_bundles.make(version=2)
    parts.want(3, bad)
    assert parts.served() == 2  # once is no habit
    _infer(parts, broken=True)
    probations.tick()
    parts.want(4, bad)
    assert parts.served() == 1
    receipt = parts.receipts()[-1]
    assert receipt.outcome == "refused"
    assert "rolled back 2 times" in receipt.reason
    for known in parts.state.models.rollbacks():
        parts.state.models.clear_rollbacks(known.bundle.sha256)
    parts.want(5, bad)
    assert parts.served() == 2


def test_a_probation_goes_on_after_a_kill_with_what_was_seen_before(parts: Parts) -> None:
    _install(parts, 1)
    probations = _probations(parts)
    probations.tick()
    _infer(parts)
    parts.now += 11.0
    probations.tick()
    again = _again(parts)
    again.now = 5000.0
    probations = _probations(again)
    probations.tick()
    again.now += 18.0
    probations.tick()
    assert again.state.models.get("thirds").probation is not None
    again.now += 2.0
    probations.tick()
    assert _outcomes(again)[-1] == ("healthy", 1)
    again.state.close()


def test_a_bundle_that_the_agent_crashes_with_at_every_start_is_rolled_back_before_it_is_loaded(parts: Parts) -> None:
    _install(parts, 1, 2)
    for starts in (2, 3):
        parts = _again(parts)
        assert (parts.served(), parts.state.models.get("thirds").starts) == (2, starts)
    parts = _again(parts)
    assert parts.served() == 1
    assert "crashed 3 times in a row" in parts.receipts()[-1].reason
    for _ in range(5):  # the old one is no suspect
        parts = _again(parts)
        assert parts.served() == 1


def test_starts_that_end_well_or_last_long_are_no_crashes(parts: Parts) -> None:
    _install(parts, 1, 2)
    for _ in range(5):
        _probations(parts).close()
        parts = _again(parts)
    for _ in range(5):
        probations = _probations(parts)
        parts.now += 61.0
        probations.tick()
        parts = _again(parts)
    assert parts.served() == 2


def test_a_model_that_goes_out_of_memory_and_comes_again_was_started_once(parts: Parts) -> None:
    _install(parts, 1, 2)
    for _ in range(5):
        parts.serving.reload("thirds")
        _infer(parts)
    assert parts.state.models.get("thirds").starts == 1
    parts = _again(parts)
    for _ in range(5):
        parts.serving.reload("thirds")
        _infer(parts)
    parts = _again(parts)
    assert parts.served() == 2
    parts.state.close()


def test_a_good_bundle_that_crashes_the_agent_while_it_is_loaded_is_taken_out_so_that_the_agent_lives(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(parts, 1)
    parts.settle()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt  # as far as this process is concerned

    for _ in range(3):
        parts.state.close()
        parts = Parts(parts.folder.root, parts.config)
        with monkeypatch.context() as broken:
            broken.setattr("edge_agent.switch.Model", crash)
            with pytest.raises(KeyboardInterrupt):
                parts.switch.restore()
    parts = _again(parts)
    assert parts.served() is None
    assert _outcomes(parts)[-1] == ("rolled-back", 1)
    assert parts.state.models.get("thirds").answered == 0  # the wish is tried again, and the self-test decides


def test_a_bundle_that_crashes_the_agent_whenever_it_is_taken_up_is_refused_in_the_end(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _install(parts, 1)
    parts.settle()
    second = agent_bundles.make(version=2)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt  # as far as this process is concerned

    for _ in range(3):
        parts.sign(second)
        with monkeypatch.context() as broken:
            broken.setattr("edge_agent.switch.Model", crash)
            with pytest.raises(KeyboardInterrupt):
                parts.want(2, second)
        parts = _again(parts)
        assert parts.served() == 1
    parts.sign(second)
    parts.want(2, second)
    assert _outcomes(parts)[-1] == ("refused", 2)
    assert "crashed 3 times in a row while it took it up" in parts.receipts()[-1].reason
    parts.want(3, second)  # a new wish is a new chance
    assert parts.served() == 2
    parts.state.close()


def test_what_keeps_a_bundle_from_being_taken_up_is_no_crash(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(parts, 1)
    second = agent_bundles.make(version=2)
    parts.sign(second)

    def busy(*_: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    for _ in range(5):
        with monkeypatch.context() as broken:
            broken.setattr(parts.switch, "_commit", busy)
            with pytest.raises(sqlite3.OperationalError):
                parts.want(2, second)
    parts.want(2, second)
    assert parts.served() == 2


def test_another_bundle_during_probation_leaves_the_good_one_as_the_fallback(parts: Parts) -> None:
    _install(parts, 1, 2)
    third = agent_bundles.make(version=3)
    parts.sign(third)
    parts.want(3, third)
    assert parts.served() == 3
    _infer(parts, broken=True)
    _probations(parts).tick()
    assert parts.served() == 1


def test_a_refused_bundle_during_probation_changes_nothing(parts: Parts) -> None:
    _install(parts, 1, 2)
    before = parts.state.models.get("thirds")
    bad = agent_bundles.make(version=3, golden_shift=1.0)
    parts.sign(bad)
    parts.want(3, bad)
    after = parts.state.models.get("thirds")
    assert (after.active, after.previous, after.probation) == (before.active, before.previous, before.probation)


def test_a_person_rolls_back_and_that_bundle_stays_away(parts: Parts) -> None:
    _install(parts, 1)
    with pytest.raises(RefusedError, match="nothing served before"):
        roll_back_by_hand(parts.state, parts.switch, "")
    with pytest.raises(RefusedError, match="no model 'fourths'"):
        roll_back_by_hand(parts.state, parts.switch, "fourths")
    parts.settle()
    _install(parts, 2)
    order = parts.state.models.give_order("")
    assert _probations(parts).tick()
    assert parts.state.models.order_answer(order) == ""
    assert parts.served() == 1
    assert parts.receipts()[-1].reason == BY_HAND
    parts.want(9, agent_bundles.make(version=2))
    assert parts.receipts()[-1].outcome == "refused"
    order = parts.state.models.give_order("")
    assert not _probations(parts).tick()
    assert "nothing served before" in (parts.state.models.order_answer(order) or "")


def test_a_person_cannot_go_back_to_what_the_disk_broke(parts: Parts) -> None:
    _install(parts, 1, 2)
    previous = parts.state.models.get("thirds").previous
    assert previous is not None
    parts.slots.path(previous).write_bytes(b"broken")
    with pytest.raises(RefusedError, match="thirds: what served before it cannot serve any more"):
        roll_back_by_hand(parts.state, parts.switch, "")
    _infer(parts)
    assert parts.served() == 2


def test_the_command_rolls_back_while_the_agent_does_not_run(parts: Parts) -> None:
    from edge_agent import config

    _install(parts, 1, 2)
    config.save(parts.folder, parts.config)
    parts.state.close()
    command = [sys.executable, "-m", "edge_agent", "rollback", "--state", str(parts.folder.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "serves thirds:1 float\n"), done.stderr
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, "nothing served before" in done.stderr) == (1, True)
    done = subprocess.run([*command, "--clear", "--json"], capture_output=True, text=True, check=False, timeout=120)
    assert "thirds:2 float" in msgspec.json.decode(done.stdout)["cleared"]
    again = _again(parts)
    assert again.served() == 1
    again.state.close()


def test_single_inferences_are_counted_as_batches_are(parts: Parts) -> None:
    _install(parts, 1)
    with parts.serving.use("thirds") as model:
        assert model.meter is not None
        for sample in X[:5]:
            model.step(sample)
        seen = model.meter.read()
        assert (seen.inferences, seen.errors, seen.not_finite) == (5, 0, 0)
        assert 0.5 < seen.confidence / 5 <= 1.0
        model.meter = None
        model.step(X[0])


def test_a_good_bundle_that_fails_all_the_time_gives_way_and_one_without_a_fallback_is_loaded_anew(
    parts: Parts,
) -> None:
    _install(parts, 1)
    parts.settle()
    probations, first = _probations(parts), parts.serving.get("thirds")
    assert first is not None
    parts.serving.broken.put(Broken(first.ref, "20 inferences in a row failed", on_disk=False))
    assert not probations.tick()
    assert parts.serving.get("thirds") is None
    _infer(parts)
    assert parts.serving.get("thirds") not in {None, first}
    _install(parts, 2)
    parts.settle()
    second = parts.serving.get("thirds")
    assert second is not None
    for _ in range(2):  # said by two requests at once
        parts.serving.broken.put(Broken(second.ref, "20 inferences in a row failed", on_disk=False))
    assert probations.tick()
    assert parts.served() == 1
    known = parts.state.models.rolled_back(second.ref.sha256)
    assert known is not None
    assert (known.count, known.reason) == (1, "20 inferences in a row failed")
