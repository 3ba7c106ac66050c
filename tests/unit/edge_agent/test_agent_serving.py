"""Several models share a device's memory: what is asked for is loaded, what matters least goes."""

import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.bundle import unpack
from contract.messages import Wanted
from edge_agent.config import Runtime
from edge_agent.errors import RuntimeModelError, UnavailableError
from edge_agent.probation import Probations
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.serving import Broken, Model, Origin, Serving
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts

X, _ = agent_models.samples(3, seed=0)
BUNDLE = agent_bundles.make()
REF, OPENED = agent_bundles.ref(BUNDLE), unpack(BUNDLE)


class Shelf:
    """Models by name, all alike, that say when they are loaded."""

    def __init__(self, runtime: Runtime, **sizes: int) -> None:
        self.serving = Serving(runtime)
        self.loads: list[str] = []
        for name, size in sizes.items():
            self.serving.swap(name, None, origin=self.origin(name, size))

    def origin(self, name: str, size: int) -> Origin:
        return Origin(msgspec.structs.replace(REF, model=name), lambda: self.load(name), size)

    def load(self, name: str) -> Model:
        self.loads.append(name)
        return Model(msgspec.structs.replace(REF, model=name), OPENED, RuntimeOptions())

    def use(self, *names: str) -> None:
        for name in names:
            with self.serving.use(name) as model:
                assert model.ref.model == name

    def loaded(self) -> list[str]:
        return [name for name in self.serving.names() if self.serving.get(name) is not None]


def test_a_model_is_loaded_by_the_first_who_asks_and_stays() -> None:
    shelf = Shelf(Runtime(), a=10, b=10)
    assert (shelf.serving.names(), shelf.loaded()) == (["a", "b"], [])
    shelf.use("a", "a", "b", "a")
    assert (shelf.loads, shelf.loaded()) == (["a", "b"], ["a", "b"])
    assert [ref.model for ref in shelf.serving.bundles()] == ["a", "b"]


def test_where_memory_is_short_the_one_that_waited_longest_goes_and_comes_again() -> None:
    shelf = Shelf(Runtime(memory_bytes=25), a=10, b=10, c=10)
    shelf.use("a", "b", "a", "c")
    assert shelf.loaded() == ["a", "c"]
    shelf.use("b")
    assert shelf.loaded() == ["b", "c"]
    assert shelf.loads == ["a", "b", "c", "b"]


def test_what_matters_more_stays_and_who_finds_no_room_is_told() -> None:
    shelf = Shelf(Runtime(memory_bytes=25, priority={"a": 1}), a=10, b=10, c=20)
    shelf.use("a", "b", "b")
    assert not shelf.serving.has_room("c", 20)
    with pytest.raises(UnavailableError, match=r"takes 20 bytes of memory, runtime\.memory_bytes is 25, and a matter"):
        shelf.use("c")
    shelf.use("b")
    assert shelf.loaded() == ["a", "b"]


def test_a_model_in_use_is_not_taken_away_from_who_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.serving._PATIENCE_S", 0.05)
    shelf = Shelf(Runtime(memory_bytes=15), a=10, b=10)
    holds, done = threading.Event(), threading.Event()

    def hold() -> None:
        with shelf.serving.use("a"):
            holds.set()
            assert done.wait(30)

    worker = threading.Thread(target=hold)
    worker.start()
    assert holds.wait(30)
    with pytest.raises(UnavailableError, match="'a' is in use"):
        shelf.use("b")
    done.set()
    worker.join()
    shelf.use("b")
    assert shelf.loaded() == ["b"]


def test_many_who_want_many_models_at_once_all_get_them() -> None:
    shelf = Shelf(Runtime(memory_bytes=25), **dict.fromkeys("abcd", 10))
    failures: list[Exception] = []

    def work(names: str) -> None:
        try:
            shelf.use(*names)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    workers = [threading.Thread(target=work, args=("abcd" * 5,)) for _ in range(2)]
    workers += [threading.Thread(target=work, args=("dcba" * 5,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert failures == []
    assert 1 <= len(shelf.loaded()) <= 2


def test_a_model_that_cannot_be_loaded_is_unavailable_and_somebody_hears_of_it() -> None:
    def fail() -> Model:
        raise RuntimeModelError("no such operation")

    serving = Serving()
    serving.swap("a", None, origin=Origin(REF, fail, 10))
    for _ in range(2):
        with pytest.raises(UnavailableError, match="no such operation"), serving.use("a"):
            pass
    assert serving.broken.get_nowait() == Broken(REF, "no such operation", on_disk=True)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=5),
    priorities=st.lists(st.integers(-2, 2), min_size=5, max_size=5),
    limit=st.integers(1, 60),
    asked=st.lists(st.integers(0, 4), max_size=12),
)
def test_loaded_models_never_take_more_than_they_may(
    sizes: list[int], priorities: list[int], limit: int, asked: list[int]
) -> None:
    names = "abcde"[: len(sizes)]
    shelf = Shelf(
        Runtime(memory_bytes=limit, priority=dict(zip(names, priorities, strict=False))),
        **dict(zip(names, sizes, strict=True)),
    )
    for index in asked:
        if index >= len(names):
            continue
        before = set(shelf.loaded())
        try:
            shelf.use(names[index])
        except UnavailableError:
            continue
        loaded = shelf.loaded()
        alone = loaded == [names[index]]  # one that is too large by itself is refused when it comes
        assert alone or sum(sizes[names.index(name)] for name in loaded) <= limit
        gone = before - set(loaded)
        assert all(priorities[names.index(name)] <= priorities[index] for name in gone)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path, msgspec.structs.replace(CONFIG, runtime=Runtime(lazy=["fourths"])))
    for revision, name in enumerate(("thirds", "fourths"), start=1):
        bundle = agent_bundles.make(model=name)
        made.sign(bundle)
        made.want(revision, bundle)
    yield made
    made.state.close()


def _restart(parts: Parts, runtime: Runtime) -> Parts:
    parts.state.close()
    again = Parts(parts.folder.root, msgspec.structs.replace(parts.config, runtime=runtime))
    again.switch.restore()
    return again


def test_a_lazy_model_waits_for_its_first_request_also_after_an_update_and_a_restart(parts: Parts) -> None:
    assert parts.serving.get("fourths") is None
    assert parts.served("fourths") == 1
    with parts.serving.use("fourths") as model:
        assert model.meter is not None  # on probation
        assert model.infer(X).probabilities.shape == (3, 3)
    again = _restart(parts, parts.config.runtime)
    assert (again.serving.names(), again.serving.get("fourths")) == (["fourths", "thirds"], None)
    again.state.close()


def test_at_the_start_the_most_important_models_are_loaded_first(parts: Parts) -> None:
    slot = parts.state.models.get("thirds").active
    assert slot is not None
    runtime = Runtime(memory_bytes=slot.memory_bytes + 1, priority={"fourths": 5})
    again = _restart(parts, runtime)
    assert again.serving.get("fourths") is not None
    assert again.serving.get("thirds") is None
    with pytest.raises(UnavailableError, match="fourths matter more"), again.serving.use("thirds"):
        pass
    again.state.close()


def test_a_bundle_that_never_fits_is_refused_and_the_old_one_serves_on(parts: Parts) -> None:
    again = _restart(parts, Runtime(memory_bytes=100))
    bundle = agent_bundles.make(version=2)
    again.sign(bundle)
    again.want(9, bundle)
    assert again.served() == 1
    assert "runtime.memory_bytes is 100" in again.receipts()[-1].reason
    again.state.close()


def test_a_lazy_model_that_the_disk_broke_gives_way_when_it_is_asked_for(parts: Parts) -> None:
    second = agent_bundles.make(model="fourths", version=2)
    parts.sign(second)
    parts.settle("fourths")
    parts.want(5, second)
    slot = parts.state.models.get("fourths").active
    assert slot is not None
    parts.slots.path(slot).write_bytes(b"")
    with pytest.raises(UnavailableError, match="cannot be loaded"), parts.serving.use("fourths"):
        pass
    probations = Probations(
        parts.config, state=parts.state, serving=parts.serving, switch=parts.switch, monotonic=lambda: parts.now
    )
    assert probations.tick()
    with parts.serving.use("fourths") as model:
        assert model.ref.version == 1
    assert parts.state.models.get("fourths").answered == 0  # it is fetched again
    parts.wanted["fourths"] = Wanted(revision=5, rollout=None, bundle=agent_bundles.ref(second))
    parts.want(6, agent_bundles.make())
    assert parts.served("fourths") == 2
