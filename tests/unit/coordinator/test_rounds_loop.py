"""The durable loop over a mailbox in memory: it stops anywhere and ends in the same state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import tensors
from contract.messages import Instruction, RoundReply
from coordinator.rounds import settings
from coordinator.rounds.errors import QuorumError
from coordinator.rounds.loop import Plan, make_strategy, run_rounds
from coordinator.rounds.mqtt_grid import MqttGrid
from coordinator.rounds.runs import RoundResult
from coordinator.rounds.settings import RunConfig
from tests.fakes.memory_mailbox import MemoryMailbox

BASE = {"w": np.zeros(3, np.float32)}
DEVICES = ["a", "b", "c"]
TARGETS = {"a": 1.0, "b": 2.0, "c": 6.0}


class Journal:
    def __init__(self) -> None:
        self.results: list[RoundResult] = []
        self.blobs: dict[str, dict[str, np.ndarray]] = {}

    def committed(self) -> list[RoundResult]:
        return list(self.results)

    def commit(self, result: RoundResult) -> None:
        self.results.append(result)

    def put(self, weights: dict[str, np.ndarray]) -> str:
        name = str(hash(tensors.dump(weights)))
        self.blobs[name] = weights
        return name

    def get(self, sha256: str) -> dict[str, np.ndarray]:
        return self.blobs[sha256]


class Fleet:
    """Devices that move half-way to their target, and note what they were asked."""

    def __init__(self, mailbox: MemoryMailbox, *, silent: tuple[str, ...] = ()) -> None:
        self.mailbox = mailbox
        self.silent = silent
        self.done: list[str] = []

    def work(self, _seconds: float = 0.0) -> None:
        for device, instruction in self.mailbox.due():
            if device not in self.silent:
                self.done.append(instruction.id)
                self.mailbox.answer(device, *self.reply(device, instruction))

    def reply(self, device: str, instruction: Instruction) -> tuple[RoundReply, bytes | None]:
        weights = tensors.load(self.mailbox.blobs[instruction.weights.sha256])
        update = None
        if instruction.kind == "train":
            weights = {"w": weights["w"] + (np.float32(TARGETS[device]) - weights["w"]) / 2}
            update = tensors.dump(weights)
        loss = float(abs(weights["w"] - TARGETS[device]).mean())
        reply = RoundReply(
            instruction=instruction.id,
            error="",
            examples=10,
            metrics={"loss": loss, "accuracy": 1 / (1 + loss)},
            weights=None if update is None else self.mailbox.put(update),
            counts=None,
        )
        return reply, update


class Killed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


def go(mailbox, fleet, journal, *, config=None, kill_after=None, smallest=1):
    config = config or RunConfig(rounds=3, round_timeout_s=5)
    looks = 0

    def sleep(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if kill_after is not None and looks > kill_after:
            raise Killed
        fleet.work(seconds)

    grid = MqttGrid(
        mailbox,
        DEVICES,
        run="r",
        bundle_sha256="b" * 64,
        seed=config.seed,
        like=BASE,
        max_examples=100,
        sleep=sleep,
        poll_s=0.0,
    )
    strategy = make_strategy(config, cohort=3, smallest=smallest)
    return run_rounds(strategy, grid, journal, Plan(config, 3, smallest), BASE)


def test_rounds_are_measured_trained_and_measured_again():
    mailbox = MemoryMailbox()
    journal = Journal()
    results = go(mailbox, Fleet(mailbox), journal)
    assert [(each.round, each.kind) for each in results] == [
        (0, "evaluate"),
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "evaluate"),
    ]
    assert journal.get(results[-1].weights_sha256)["w"] == pytest.approx(3 * (1 - 1 / 8))
    assert results[-1].metrics["loss"] < results[0].metrics["loss"]


@given(st.lists(st.integers(0, 4), max_size=6))
def test_a_run_killed_anywhere_ends_in_the_same_state_and_asks_no_device_twice(kills):
    undisturbed = Journal()
    mailbox = MemoryMailbox()
    expected = go(mailbox, Fleet(mailbox), undisturbed)

    mailbox, journal = MemoryMailbox(), Journal()
    fleet = Fleet(mailbox)
    for looks in kills:
        try:
            go(mailbox, fleet, journal, kill_after=looks)
        except Killed:
            fleet.work()  # devices go on while the run is dead
    results = go(mailbox, fleet, journal)
    assert [each.weights_sha256 for each in results] == [each.weights_sha256 for each in expected]
    assert [each.metrics for each in results] == [each.metrics for each in expected]
    assert len(journal.results) == len(expected)
    assert len(fleet.done) == len(set(fleet.done)) == 15


def test_too_few_replies_end_the_run_and_say_who_is_missing():
    mailbox = MemoryMailbox()
    config = RunConfig(rounds=1, round_timeout_s=0.05)
    with pytest.raises(QuorumError, match=r"1 good replies of 3, needed 2 .*b: no reply in time"):
        go(mailbox, Fleet(mailbox, silent=("b", "c")), Journal(), config=config)


def test_a_round_goes_on_without_a_minority():
    mailbox = MemoryMailbox()
    config = RunConfig(rounds=1, round_timeout_s=0.05)
    results = go(mailbox, Fleet(mailbox, silent=("b",)), Journal(), config=config)
    assert [each.replies for each in results] == [2, 2, 2]
    assert results[1].failures == {"b": "no reply in time"}


def test_no_result_comes_from_fewer_devices_than_the_smallest_cohort():
    mailbox = MemoryMailbox()
    config = RunConfig(rounds=1, round_timeout_s=0.05, min_replies=1)
    with pytest.raises(QuorumError, match="needed 3"):
        go(mailbox, Fleet(mailbox, silent=("b",)), Journal(), config=config, smallest=3)


def test_instructions_carry_the_settings_of_the_run():
    mailbox = MemoryMailbox()
    seen: list[Instruction] = []

    class Watching(Fleet):
        def reply(self, device, instruction):
            seen.append(instruction)
            return super().reply(device, instruction)

    config = RunConfig(
        rounds=1,
        epochs=3,
        learning_rate=0.2,
        optimizer="adam",
        momentum=0.5,
        weight_decay=0.01,
        proximal_mu=0.1,
        max_samples=77,
        evaluate_samples=33,
        round_timeout_s=5,
    )
    go(mailbox, Watching(mailbox), Journal(), config=config)
    train = next(each for each in seen if each.kind == "train")
    assert (train.epochs, train.learning_rate, train.momentum) == (3, 0.2, 0.5)
    assert (train.optimizer, train.weight_decay) == ("adam", 0.01)
    assert (train.proximal_mu, train.max_samples, train.bundle_sha256) == (0.1, 77, "b" * 64)
    assert len({each.seed for each in seen if each.kind == "train"}) == 3
    assert {each.max_samples for each in seen if each.kind == "evaluate"} == {33}


@given(st.floats(0.01, 1), st.integers(0, 30), st.integers(1, 30), st.integers(1, 10))
def test_the_quorum_can_be_reached_and_is_no_smaller_than_allowed(fraction, min_replies, cohort, smallest):
    config = RunConfig(fraction=fraction, min_replies=min_replies)
    asked = settings.sample_size(config, cohort, smallest=smallest)
    needed = settings.quorum(config, asked, smallest=smallest)
    assert 1 <= needed <= asked <= cohort
    assert needed >= min(smallest, cohort)
