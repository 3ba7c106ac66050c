"""Trials that go on from what earlier ones made end with the same bytes."""

from pathlib import Path
from typing import Any

import pytest

from compression import recipe, tuning
from compression.search import cache
from compression.search.cache import Cache
from compression.search.trying import Trier
from compression.stage import Workbench, Workpiece
from tests.fakes import digits_bench


@pytest.fixture(scope="module")
def bench() -> Workbench:
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    return digits_bench.trained()


@pytest.fixture
def start(bench: Workbench) -> Any:
    return digits_bench.keras_model(bench)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        [{"stage": "filter-prune", "keep": 0.5, "epochs": 1}, {"stage": "low-rank", "energy": 0.7, "epochs": 1}],
        [{"stage": "prune", "epochs": 1}, {"stage": "cluster", "epochs": 1}, {"stage": "qat", "epochs": 1}],
        [{"stage": "prune", "epochs": 1}, {"stage": "qat", "epochs": 1}],
        [{"stage": "cluster", "epochs": 1}, {"stage": "qat", "epochs": 1}],
        [{"stage": "qat", "epochs": 1}],
    ],
)
def test_a_recipe_that_goes_on_from_kept_models_makes_the_same_bytes(
    bench: Workbench, start: Any, tmp_path: Path, fields: list[dict[str, Any]]
) -> None:
    made = recipe.from_fields({"name": "r", "stages": [*fields, {"stage": "int8"}]}, "here")
    whole = Trier(start, bench, Cache(tmp_path / "one"), expired=lambda: False).make(made, most_drop=1.0).artifact
    for count, last in enumerate(made.stages[:-1], start=1):  # each time one stage more is there already
        kept = Cache(tmp_path / f"from{count}")
        later = Trier(start, bench, kept, expired=lambda: False)
        piece = Workpiece(start)
        with tuning.quiet():
            for stage in made.stages[:count]:
                piece = recipe.run_stage(stage, piece, bench)
        # What QAT wraps cannot be described as JSON; the artifact behind it is kept instead.
        assert kept.put(cache.key(later.origin, made.stages[:count]), piece) == (last.name != "qat")
        assert later.make(made, most_drop=1.0).artifact == whole
