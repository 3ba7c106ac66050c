"""The space: whatever is drawn is a valid recipe, and layers that cost accuracy are spared."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import recipe
from compression.search import sensitivity, space
from compression.search.sensitivity import LayerLoss
from compression.search.space import Space


def loss(layer: str, technique: str, level: float, divergence: float) -> LayerLoss:
    return LayerLoss(layer=layer, weights=100, technique=technique, level=level, drop=0.0, divergence=divergence)


LOSSES = [loss(layer, "sparsity", level, 10 * level if layer == "edges" else 0.0)
          for layer in ("edges", "shapes") for level in sensitivity.SPARSITIES]  # fmt: skip


class Drawn:
    """Draws what hypothesis gives, within the limits that it is asked for."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.asked: list[str] = []

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        self.asked.append(name)
        return self.data.draw(st.sampled_from(list(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        self.asked.append(name)
        assert step is not None
        return low + step * self.data.draw(st.integers(0, round((high - low) / step)))


@pytest.mark.parametrize("losses", [[], LOSSES])
@given(data=st.data(), epochs=st.integers(1, 9))
def test_whatever_is_drawn_is_a_valid_recipe_that_can_be_read_again(
    losses: list[LayerLoss], data: st.DataObject, epochs: int
) -> None:
    of, suggest = space.build(losses), Drawn(data)
    params = space.draw(of, suggest)
    assert sorted(params) == sorted(suggest.asked)
    made = space.make(of, params, epochs=epochs, name="drawn", seed=3)
    assert made == recipe.from_fields(recipe_fields(made), "again")
    assert all(getattr(stage, "epochs", epochs) == epochs for stage in made.stages)
    assert space.words(made)


def recipe_fields(made: recipe.Recipe) -> Any:
    import msgspec

    return msgspec.to_builtins(made)


@pytest.mark.parametrize("trains", [True, False])
def test_single_techniques_are_different_recipes_and_each_option_is_one(trains: bool) -> None:
    of = space.build([], trains=trains)
    made = [space.make(of, params, epochs=1, name="one", seed=0) for params in space.singles(of)]
    assert (
        len({space.family(each) for each in made}) == len(made) == sum(o.alone for o in of.options) + len(of.finishes)
    )
    assert any(each.trains for each in made) == trains


def test_epochs_and_names_make_no_other_family_but_a_parameter_does() -> None:
    of = space.build([])
    params = next(single for single in space.singles(of) if single["prune"])
    one, longer = (space.make(of, params, epochs=epochs, name=f"n{epochs}", seed=0) for epochs in (1, 9))
    assert space.family(one) == space.family(longer)
    other = space.make(of, {**params, "prune.sparsity": 0.48}, epochs=1, name="n1", seed=0)
    assert space.family(one) != space.family(other)


def test_layers_that_cost_accuracy_keep_more_of_their_filters() -> None:
    of: Space = space.build(LOSSES)
    assert of.spared["filter-prune"] == ("edges",)
    params = next(single for single in space.singles(of) if single["filter-prune"])
    assert not space.make(of, params, epochs=1, name="one", seed=0).stages[0].layers
    spared = space.make(of, {**params, "filter-prune.spare": True}, epochs=1, name="one", seed=0).stages[0]
    assert spared.layers["edges"] > spared.keep


def test_a_layer_without_filters_of_its_own_is_not_spared_them() -> None:
    assert space.build(LOSSES, filters={"shapes"}).spared == {}
    assert space.build(LOSSES, filters={"edges", "shapes"}).spared["filter-prune"] == ("edges",)


def test_layers_that_four_bits_cost_too_much_get_eight() -> None:
    losses = [loss("edges", "bits", 4, 1.0), loss("shapes", "bits", 4, 0.0)]
    of = space.build(losses)
    made = space.make(of, {space.FINISH: "int4-sparing"}, epochs=1, name="one", seed=0)
    rules = made.stages[-1].rules
    assert [rule.bits for rule in rules] == [4, 8]
    assert re.search(rules[1].layers, "fashion_1/edges_1/convolution")
    assert re.search(rules[1].layers, "fashion/shapes/Relu;fashion/edges/BiasAdd")
    assert not re.search(rules[1].layers, "fashion/hedges/convolution")
    assert not re.search(rules[1].layers, "fashion/edges_too/convolution")
    assert "int4-sparing" not in space.build(losses[1:]).finishes
    assert "int4-sparing" not in space.build(losses[:1]).finishes


kernels = st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 99)).map(
    lambda drawn: np.random.default_rng(drawn[2]).normal(size=drawn[:2]).astype(np.float32)
)


@given(kernels, st.integers(2, 8))
def test_quantization_is_within_half_a_step_and_keeps_the_largest(kernel: np.ndarray, bits: int) -> None:
    found = sensitivity.quantized(kernel, bits)
    step = np.abs(kernel).max(axis=0) / (2 ** (bits - 1) - 1)
    assert (np.abs(found - kernel) <= step / 2 + 1e-6).all()
    np.testing.assert_allclose(np.abs(found).max(axis=0), np.abs(kernel).max(axis=0), rtol=1e-5)


@given(kernels, st.floats(0, 1))
def test_pruning_sets_the_smallest_to_zero_and_leaves_the_rest(kernel: np.ndarray, part: float) -> None:
    found = sensitivity.pruned(kernel, part)
    assert (found == 0).sum() == int(part * kernel.size)
    assert ((found == kernel) | (found == 0)).all()
    left, gone = np.abs(kernel[found != 0]), np.abs(kernel[found == 0])
    assert not left.size or not gone.size or gone.max() <= left.min()


@given(kernels, st.integers(1, 9))
def test_clustering_leaves_so_many_values_and_no_value_is_worse_than_the_mean(kernel: np.ndarray, count: int) -> None:
    found = sensitivity.clustered(kernel, count)
    assert len(np.unique(found)) <= count
    assert ((found - kernel) ** 2).sum() <= ((kernel.mean() - kernel) ** 2).sum() + 1e-4


@given(kernels)
def test_divergence_is_zero_for_the_same_and_never_negative(logits: np.ndarray) -> None:
    assert sensitivity.divergence(logits, logits + 3.0) < 1e-6
    assert sensitivity.divergence(logits, logits * -2) >= 0
