"""What trials share on disk: whole or not there, made from exactly this, and never more than it may take."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import recipe
from compression.search import cache
from compression.search.cache import Cache
from compression.search.trying import OutOfTime, Stopped, Trier, hopeless
from compression.stage import Record, Workbench, Workpiece
from tests.fakes import digits_bench

RECORD = Record(stage="int8", parameters={"a": [1, 2]}, seconds=1.5, deterministic=True, notes={"zeros": 0.5})


def artifact(size: int, fill: int = 0) -> Workpiece:
    return Workpiece(None, bytes([fill]) * size, (RECORD,))


def stages(*fields: dict[str, Any]) -> list[Any]:
    return recipe.from_fields({"name": "r", "stages": [*fields, {"stage": "int8"}]}, "here").stages


def test_an_artifact_and_its_records_come_back_as_they_were(tmp_path: Path) -> None:
    kept = Cache(tmp_path / "pieces")
    assert kept.get("a") is None
    assert kept.put("a", artifact(1000))
    assert Cache(tmp_path / "pieces").get("a") == artifact(1000)


@given(damage=st.one_of(st.integers(0, 400).map(lambda n: ("cut", n)), st.integers(0, 90).map(lambda n: ("turn", n))))
def test_a_damaged_file_is_not_there(tmp_path_factory: pytest.TempPathFactory, damage: tuple[str, int]) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    kept = Cache(folder)
    kept.put("a", artifact(300))
    (path,) = folder.iterdir()
    content = bytearray(path.read_bytes())
    if damage[0] == "cut":
        path.write_bytes(content[: damage[1]])
    else:
        content[damage[1]] ^= 0xFF
        path.write_bytes(content)
    found = kept.get("a")
    assert found is None or found.artifact == artifact(300).artifact
    assert path.exists() == (found is not None)


def test_what_was_unused_longest_goes_first_and_the_limit_holds(tmp_path: Path) -> None:
    import os

    kept = Cache(tmp_path / "pieces", limit_bytes=4000)
    for number, name in enumerate("abc"):
        assert kept.put(name, artifact(1000, number))
        os.utime(tmp_path / "pieces" / f"{name}.piece", ns=(number, number))
    assert kept.get("a") is not None  # used now
    kept.put("d", artifact(1000, 9))
    assert kept.get("b") is None
    assert kept.get("a") == artifact(1000, 0)
    assert sum(path.stat().st_size for path in (tmp_path / "pieces").iterdir()) <= 4000
    assert not kept.put("e", artifact(5000))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "a.part").write_bytes(b"half")
    assert Cache(tmp_path / "pieces").get("a") is None
    assert not list((tmp_path / "pieces").iterdir())


def test_any_other_parameter_or_origin_is_another_key() -> None:
    made = [
        cache.key(begun, stages({"stage": "prune", "sparsity": part, "epochs": epochs}))
        for begun in ("x", "y")
        for part in (0.5, 0.6)
        for epochs in (1, 2)
    ]
    assert len(set(made)) == len(made)
    assert made[0] == cache.key("x", stages({"stage": "prune", "sparsity": 0.5, "epochs": 1}))


answers = st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=300).map(np.array)


@given(answers, st.floats(0, 0.5), st.booleans())
def test_a_trial_is_stopped_only_where_it_clearly_lost_more_than_may_be(
    lost: np.ndarray, most: float, recovers: bool
) -> None:
    why = hopeless(lost, most_drop=most, recovers=recovers)
    if lost.mean() <= most:
        assert not why
    if why:
        assert f"{100 * lost.mean():.1f} points lost" in why
        assert hopeless(lost, most_drop=most, recovers=False)  # with less hope it is stopped, too


def test_a_model_that_answers_nothing_rightly_is_stopped_in_words() -> None:
    assert hopeless(np.ones(100), most_drop=0.005, recovers=True) == (
        "100.0 points lost, 10.5 at most could still do, 10 of them may come back by training"
    )


@pytest.fixture(scope="module")
def bench() -> Workbench:
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    return digits_bench.trained()


@pytest.fixture
def start(bench: Workbench) -> Any:
    return digits_bench.keras_model(bench)


@pytest.mark.slow
def test_a_trial_ends_between_stages_when_time_is_up_and_when_it_is_hopeless(
    bench: Workbench, start: Any, tmp_path: Path
) -> None:
    made = recipe.from_fields(
        {"name": "r", "stages": [{"stage": "prune", "sparsity": 0.98, "epochs": 1}, {"stage": "int8"}]}, "here"
    )
    with pytest.raises(OutOfTime):
        Trier(start, bench, Cache(tmp_path), expired=lambda: True).make(made, most_drop=0.01)
    with pytest.raises(Stopped, match=r"after prune: .* points lost, 1.0 at most could still do"):
        Trier(start, bench, Cache(tmp_path), expired=lambda: False).make(made, most_drop=0.01)


@pytest.mark.slow
def test_other_weights_data_or_seed_are_another_origin(bench: Workbench) -> None:
    import dataclasses

    name = next(iter(bench.weights))
    others = [
        bench,
        dataclasses.replace(bench, seed=bench.seed + 1),
        dataclasses.replace(bench, weights={**bench.weights, name: bench.weights[name] + 1}),
        dataclasses.replace(bench, train=dataclasses.replace(bench.train, y=bench.train.y[::-1])),
    ]
    assert len({cache.origin(other) for other in others}) == len(others)
    assert cache.origin(bench) == cache.origin(dataclasses.replace(bench))


def test_records_survive_json() -> None:
    assert msgspec.json.decode(msgspec.json.encode(RECORD), type=Record) == RECORD
