"""Every path of the cohort engine gives what training client after client gives."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contract.tensors import Arrays
from simulations.cohort.engine import Engine, Round
from simulations.cohort.learner import Learner, of_module
from simulations.cohort.local import Client, Local
from simulations.errors import SimulationError

CLASSES, FEATURES = 4, 6


class Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell, self.head = cell(2, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.cell(x.view(len(x), 3, 2))[0][:, -1])
        return answer


def image(x: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 2)), nn.Conv2d(1, x, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2 * x, CLASSES)
    )


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 3, 2)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, (2, 1), padding=1, stride=(1, 2)),
        nn.MaxPool2d(2, stride=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(18, 20),
        nn.ReLU(),
        nn.Linear(20, CLASSES),
    )


MODELS: dict[str, Any] = {
    "softmax": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)),
    "wide": lambda: nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 40), nn.ReLU(), nn.Linear(40, CLASSES)),
    "deep": lambda: nn.Sequential(
        nn.Linear(FEATURES, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, CLASSES)
    ),
    "uneven": lambda: nn.Sequential(nn.Linear(FEATURES, 21), nn.ReLU(), nn.Linear(21, 19)),
    "groups": lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.GroupNorm(2, 8), nn.SiLU(), nn.Linear(8, CLASSES)),
    "image": lambda: image(3),
    "convolutions": pooled,
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
}


def learner(name: str) -> Learner:
    torch.manual_seed(3)
    return of_module(MODELS[name](), CLASSES)


def population(samples: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(samples)
    return random.standard_normal((samples, FEATURES)).astype(np.float32), random.integers(0, CLASSES, samples)


def cohort(sizes: list[int], epochs: list[int], *, shuffled: bool) -> list[Client]:
    ends = np.cumsum(sizes)
    return [
        Client(
            name=f"c{index}",
            rows=np.arange(end - size, end),
            epochs=epochs[index % len(epochs)],
            learning_rate=0.05 * (1 + index % 3),
            seed=index if shuffled else None,
        )
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


def error(found: Arrays, wanted: Arrays, start: Arrays) -> float:
    """Of the update, relative."""
    away = sum(float(((found[name] - wanted[name]).astype(np.float64) ** 2).sum()) for name in start)
    moved = sum(float(((wanted[name] - start[name]).astype(np.float64) ** 2).sum()) for name in start)
    return float((away / moved) ** 0.5)


def by_hand(which: Learner) -> str:
    return "convolutions" if which.images else "dense kernels"


def trained(which: Learner, clients: list[Client], local: Local, **options: Any) -> Round:
    x, y = population(sum(len(client.rows) for client in clients))
    return Engine(which, x, y, threads=2, **options).train(which.start, clients, local, keep=True)


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(MODELS)),
    sizes=st.lists(st.integers(1, 23), min_size=1, max_size=9),
    epochs=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    batch=st.integers(1, 8),
    chunk=st.integers(1, 5),
    shuffled=st.booleans(),
    local=st.sampled_from(
        [
            {},
            {"momentum": 0.9},
            {"weight_decay": 0.1},
            {"proximal_mu": 0.5, "momentum": 0.5, "weight_decay": 0.2},
            {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.01},
        ]
    ),
    exact=st.booleans(),
)
def test_every_path_gives_what_the_loop_gives(
    name: str,
    sizes: list[int],
    epochs: list[int],
    batch: int,
    chunk: int,
    *,
    shuffled: bool,
    local: dict[str, Any],
    exact: bool,
) -> None:
    which, clients = learner(name), cohort(sizes, epochs, shuffled=shuffled)
    settled, dtype = Local(batch=batch, **local), torch.float64 if exact else torch.float32
    wanted = trained(which, clients, settled, path="one by one", dtype=dtype)
    for path in ["vmap", *([by_hand(which)] if which.stack else [])]:
        found = trained(which, clients, settled, path=path, chunk=chunk, dtype=dtype)
        assert error(found.weights, wanted.weights, which.start) < (2e-6 if exact else 1e-3), path
        for client in clients:
            assert error(found.each[client.name], wanted.each[client.name], which.start) < 1e-3
            assert found.trained[client.name].loss == pytest.approx(
                wanted.trained[client.name].loss, rel=1e-3, abs=1e-5
            )
            assert found.trained[client.name].accuracy == pytest.approx(wanted.trained[client.name].accuracy, abs=0.35)


@pytest.mark.parametrize("path", ["one by one", "vmap", "dense kernels", "convolutions"])
@pytest.mark.parametrize("keep", [True, False])
def test_a_client_with_a_value_that_is_no_number_does_not_count(path: str, *, keep: bool) -> None:
    model = "convolutions" if path == "convolutions" else "wide"
    which, clients = learner(model), cohort([20, 7, 9, 30], [1], shuffled=False)
    x, y = population(66)
    broken = x.copy()
    broken[22, 1] = np.nan
    local = Local(batch=8)
    found = Engine(which, broken, y, path=path, chunk=3, threads=1).train(which.start, clients, local, keep=keep)
    assert not found.trained["c1"].finite
    rest = [client for client in clients if client.name != "c1"]
    wanted = Engine(which, x, y, path="one by one").train(which.start, rest, local)
    assert error(found.weights, wanted.weights, which.start) < 1e-4


def test_folding_gives_what_replies_of_every_client_average_to() -> None:
    which, clients = learner("wide"), cohort([5, 17, 3, 9, 12], [1, 2], shuffled=True)
    x, y = population(46)
    engine = Engine(which, x, y, chunk=2, threads=2)
    folded, kept = (engine.train(which.start, clients, Local(batch=4), keep=keep) for keep in (False, True))
    assert folded.each == {}
    sizes = {client.name: len(client.rows) for client in clients}
    for name in which.start:
        average = sum(kept.each[client][name] * size for client, size in sizes.items()) / sum(sizes.values())
        np.testing.assert_allclose(folded.weights[name], average, atol=1e-6)


def test_the_same_plan_gives_the_same_bits() -> None:
    which, clients = learner("wide"), cohort([5, 17, 3, 9, 12] * 6, [1], shuffled=True)
    x, y = population(46 * 6)
    rounds = [Engine(which, x, y, chunk=4, threads=2).train(which.start, clients, Local(batch=4)) for _ in range(3)]
    for name in which.start:
        assert all(np.array_equal(rounds[0].weights[name], each.weights[name]) for each in rounds[1:])


def test_the_start_is_not_touched_by_a_chunk_of_one() -> None:
    for path, model in (("vmap", "wide"), ("dense kernels", "wide"), ("convolutions", "convolutions")):
        which, clients = learner(model), cohort([40, 41, 42], [1], shuffled=False)
        before = {name: array.copy() for name, array in which.start.items()}
        trained(which, clients, Local(batch=8), path=path, chunk=1)
        assert all(np.array_equal(which.start[name], before[name]) for name in before)


def test_what_vmap_cannot_follow_is_trained_one_by_one_and_said(caplog: pytest.LogCaptureFixture) -> None:
    class Jumps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = self.head(x)
            return answer if float(answer.sum()) > 0 else 2 * answer

    x, y = population(10)
    assert Engine(of_module(Jumps(), CLASSES), x, y).plan["path"] == "one by one"
    assert "clients train one by one, for vmap cannot follow this model" in caplog.text


def test_what_cannot_be_trained_is_said_in_a_line() -> None:
    which = learner("softmax")
    x, y = population(10)
    good = cohort([5], [1], shuffled=False)[0]
    with pytest.raises(SimulationError, match="classes 0 to 9 among the samples; the model knows 4"):
        Engine(which, x, np.arange(10))
    with pytest.raises(SimulationError, match="empty has no samples"):
        Engine(which, x, y).train(which.start, [good, Client("empty", np.zeros(0, np.int64), 1, 0.1, None)], Local())
    with pytest.raises(SimulationError, match="a cohort without clients"):
        Engine(which, x, y).train(which.start, [], Local())
    with pytest.raises(SimulationError, match="no client's training stayed finite"):
        Engine(which, np.full_like(x, np.nan), y).train(which.start, [good], Local())
    frozen = MODELS["softmax"]()
    frozen[0].bias.requires_grad_(False)
    with pytest.raises(SimulationError, match=r"0\.bias is frozen"):
        of_module(frozen, CLASSES)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.1)])
def test_the_loop_does_what_torch_does(momentum: float, decay: float) -> None:
    """Its optimiser is torch's, but for weight decay apart from the gradient; BatchNorm keeps its moments."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
    which = of_module(module, CLASSES)
    x, y = population(22)
    client = Client("c", np.arange(22), 3, 0.1, None)
    engine = Engine(which, x, y)
    assert engine.plan["path"] == "one by one"
    found = engine.train(which.start, [client], Local(batch=8, momentum=momentum, weight_decay=decay)).weights
    optimiser = torch.optim.SGD(module.train().parameters(), lr=0.1, momentum=momentum)
    for _ in range(3):
        for at in (0, 8, 16):
            loss = nn.functional.cross_entropy(
                module(torch.from_numpy(x[at : at + 8])), torch.from_numpy(y[at : at + 8])
            )
            optimiser.zero_grad()
            loss.backward()
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1 - 0.1 * decay)
            optimiser.step()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            np.testing.assert_allclose(found[name], value.numpy(), atol=1e-5)
