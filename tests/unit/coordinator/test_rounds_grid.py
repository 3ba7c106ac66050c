"""What every grid does, over a grid that answers from a function."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import profile
from contract.profile import FeatureBins, ProfileSpec
from coordinator.rounds import flower
from coordinator.rounds.grid import GridBase, Reply, Task
from coordinator.rounds.loop import make_strategy
from coordinator.rounds.settings import RunConfig

LIKE = {"w": np.zeros((2, 2), np.float32), "n": np.zeros(2, np.int32)}
GOOD = {"loss": 1.0, "accuracy": 0.5}
Answer = Callable[[Task], Reply | None]


class FunctionGrid(GridBase):
    def __init__(self, answer: Answer, devices: Sequence[str], **options: object) -> None:
        self.time = 0.0
        super().__init__(devices, like=LIKE, max_examples=1000, clock=lambda: self.time, sleep=self.wait, **options)
        self.answer = answer
        self.tasks: list[Task] = []
        self.closed: list[str] = []
        self.answers: dict[str, Reply] = {}

    def wait(self, seconds: float) -> None:
        self.time += seconds

    def send(self, tasks: Sequence[Task], timeout_s: float) -> list[str]:
        self.tasks += tasks
        for task in tasks:
            reply = self.answer(task)
            if reply is not None:
                self.answers[f"{task.kind}-{task.device}"] = reply
        return [f"{task.kind}-{task.device}" for task in tasks]

    def receive(self, ids: Sequence[str]) -> dict[str, Reply]:
        return {name: self.answers[name] for name in ids if name in self.answers}

    def close(self, ids: Sequence[str]) -> None:
        self.closed += ids


def trained(value: float, examples: int = 10) -> Reply:
    weights = {"w": np.full((2, 2), value, np.float32), "n": np.full(2, round(value), np.int32)}
    return Reply(examples=examples, metrics=GOOD, weights=weights)


def one_round(grid: GridBase, devices: int, timeout: float = 1.0) -> tuple[dict[str, np.ndarray] | None, list]:
    strategy = make_strategy(RunConfig(), cohort=devices, smallest=1)
    messages = strategy.configure_train(1, flower.record(LIKE), flower.ConfigRecord({"epochs": 1}), grid)
    replies = grid.send_and_receive(messages, timeout=timeout)
    record, _ = strategy.aggregate_train(1, replies)
    return (None if record is None else flower.arrays(record, LIKE)), replies


NAMES = [f"d{i}" for i in range(4)]


@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.integers(1, 1000)), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_average_is_weighted_by_examples_and_does_not_depend_on_the_order_of_devices(values, random):
    names = [f"d{i}" for i in range(len(values))]
    by_name = dict(zip(names, values, strict=True))
    shuffled = list(names)
    random.shuffle(shuffled)
    results = [
        one_round(FunctionGrid(lambda task: trained(*by_name[task.device]), order), len(names))[0]
        for order in (names, shuffled)
    ]
    assert np.array_equal(results[0]["w"], results[1]["w"])
    expected = sum(value * examples for value, examples in values) / sum(examples for _, examples in values)
    assert results[0]["w"][0, 0] == pytest.approx(expected, rel=1e-4, abs=1e-3)
    assert results[0]["w"].dtype == np.float32
    assert results[0]["n"].dtype == np.int32


BAD = {
    "another shape": Reply(examples=1, metrics=GOOD, weights={**LIKE, "w": np.zeros(3, np.float32)}),
    "another name": Reply(examples=1, metrics=GOOD, weights={"v": LIKE["w"], "n": LIKE["n"]}),
    "another dtype": Reply(examples=1, metrics=GOOD, weights={**LIKE, "w": np.zeros((2, 2))}),
    "not finite": Reply(examples=1, metrics=GOOD, weights={**LIKE, "w": np.full((2, 2), np.nan, np.float32)}),
    "no weights": Reply(examples=1, metrics=GOOD),
    "no examples": Reply(examples=0, metrics=GOOD, weights=LIKE),
    "inflated examples": Reply(examples=10**9, metrics=GOOD, weights=LIKE),
    "no metrics": Reply(examples=1, metrics={"loss": 1.0}, weights=LIKE),
    "infinite loss": Reply(examples=1, metrics={**GOOD, "loss": float("inf")}, weights=LIKE),
    "its own error": Reply(error="no labelled samples"),
}


@pytest.mark.parametrize("reply", BAD.values(), ids=BAD.keys())
def test_an_offender_fails_alone_and_the_others_are_averaged(reply):
    grid = FunctionGrid(lambda task: reply if task.device == "d1" else trained(2.0), NAMES)
    weights, replies = one_round(grid, 4)
    assert list(grid.failures) == ["d1"]
    assert sum(message.has_error() for message in replies) == 1
    assert (weights["w"] == 2.0).all()


def test_metrics_of_mixed_firmware_do_not_kill_the_round():
    def answer(task: Task) -> Reply:
        extra = {"f1": 0.3} if task.device == "d2" else {}
        return Reply(examples=5, metrics={**GOOD, **extra}, weights=trained(1.0).weights)

    weights, _ = one_round(FunctionGrid(answer, NAMES), 4)
    assert weights is not None


def test_the_deadline_ends_the_wait_and_the_late_ones_are_closed():
    grid = FunctionGrid(lambda task: None if task.device == "d3" else trained(1.0), NAMES, poll_s=0.1)
    _, replies = one_round(grid, 4, timeout=2.0)
    assert len(replies) == 3
    assert grid.time == pytest.approx(2.0, abs=0.2)
    assert grid.closed == ["train-d3"]
    assert grid.failures == {"d3": "no reply in time"}


def test_clients_cannot_change_the_weights_that_they_share():
    def answer(task: Task) -> Reply:
        with pytest.raises(ValueError, match="read-only"):
            task.weights["w"][0, 0] = 9
        return trained(1.0)

    grid = FunctionGrid(answer, NAMES)
    one_round(grid, 4)
    assert {id(task.weights) for task in grid.tasks} == {id(grid.tasks[0].weights)}


def test_push_and_pull_work_without_waiting():
    grid = FunctionGrid(lambda task: trained(1.0) if task.device == "d0" else None, NAMES)
    strategy = make_strategy(RunConfig(), cohort=4, smallest=1)
    messages = strategy.configure_train(1, flower.record(LIKE), flower.ConfigRecord(), grid)
    ids = grid.push_messages(messages)
    assert len(grid.pull_messages(ids)) == 1
    assert grid.pull_messages(ids) == []


def test_evaluation_counts_must_fit_the_bins():
    spec = ProfileSpec(features=[FeatureBins("f", [0.0])], classes=2, confidence_edges=[0.5])
    good = profile.count(spec, np.asarray([[1.0]]), np.asarray([[0.9, 0.1]]))

    def answer(task: Task) -> Reply:
        return Reply(examples=1, metrics=GOOD, counts=good if task.device != "d0" else profile.zero(BIGGER))

    grid = FunctionGrid(answer, NAMES, spec=spec)
    strategy = make_strategy(RunConfig(), cohort=4, smallest=1)
    messages = strategy.configure_evaluate(1, flower.record(LIKE), flower.ConfigRecord(), grid)
    replies = grid.send_and_receive(messages, timeout=1.0)
    assert strategy.aggregate_evaluate(1, replies)["accuracy"] == pytest.approx(0.5)
    assert (sorted(grid.counts), list(grid.failures)) == (["d1", "d2", "d3"], ["d0"])


BIGGER = ProfileSpec(features=[FeatureBins("f", [0.0, 1.0])], classes=2, confidence_edges=[0.5])


def test_fedprox_is_chosen_by_its_strength():
    plain = make_strategy(RunConfig(), cohort=3, smallest=1)
    proximal = make_strategy(RunConfig(proximal_mu=0.1), cohort=3, smallest=1)
    assert (type(plain).__name__, type(proximal).__name__) == ("FedAvg", "FedProx")
