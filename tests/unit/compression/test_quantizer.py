"""Rules over a float artifact: the last one that fits counts, a layer is found, and what cannot be is named."""

from typing import Any

import numpy as np
import pytest

from cloud.learning import weights
from cloud.learning.backend import use_tensorflow
from compression import quantizer, recipe
from compression.errors import ArtifactError, CompressionError, RecipeError
from compression.quantizer import Rule
from compression.stage import Workbench
from edge_agent.runtime import Runtime
from tests.fakes import digits_bench

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Workbench:
    use_tensorflow()
    return digits_bench.untrained()


@pytest.fixture(scope="module")
def artifact(bench: Workbench) -> bytes:
    from compression import convert

    model = weights.build(bench.task, seed=1)
    weights.put(model, bench.weights)
    return convert.to_float(model)


def changes(found: quantizer.Quantized) -> list[tuple[str, str, int]]:
    return [(each["operation"], each["compute"], each["bits"]) for each in found.changed]


def test_the_last_rule_that_fits_counts_for_each_layer(bench: Workbench, artifact: bytes) -> None:
    rules = [
        Rule(),
        Rule(operation="FULLY_CONNECTED", bits=4),
        Rule(layers="strokes", compute="weight-only"),
        Rule(layers="logits", compute="float"),
    ]
    found = quantizer.quantize(artifact, rules, bench.train.x[:1])
    assert changes(found) == [
        ("CONV_2D", "dynamic", 8),
        ("CONV_2D", "weight-only", 8),
        ("FULLY_CONNECTED", "dynamic", 4),
    ]
    assert Runtime(found.content).input_type == np.float32
    assert quantizer.apply(artifact, found.recipe, bench.train.x[:1]) == found.content


def test_the_last_layer_is_found_though_its_output_has_another_name(bench: Workbench, artifact: bytes) -> None:
    found = quantizer.quantize(artifact, [Rule(layers="logits", bits=4)], bench.train.x[:1])
    assert changes(found) == [("FULLY_CONNECTED", "dynamic", 4)]


def test_a_static_rule_for_everything_makes_input_and_output_integers_unless_one_leaves_them(
    bench: Workbench, artifact: bytes
) -> None:
    every = Rule(compute="static")
    ends = [Rule(operation=end, compute="float") for end in ("INPUT", "OUTPUT")]
    for rules, wanted in (([every], np.int8), ([every, *ends], np.float32)):
        runtime = Runtime(quantizer.quantize(artifact, rules, bench.train.x[:50]).content)
        assert runtime.input_type == runtime.output_type == wanted


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(operation="CONV2D"), r"rules\[0\]: unknown operation 'CONV2D'"),
        (Rule(layers="["), r"rules\[0\]: layers '\[' is no regular expression"),
        (Rule(layers="nowhere"), r"rules\[0\]: layers 'nowhere' is found in no operation; there are .*strokes"),
        (Rule(operation="SOFTMAX", compute="static"), "the rules change nothing of CONV_2D, FULLY_CONNECTED"),
        (Rule(operation="CONV_2D", compute="static", bits=2), r"rules\[0\]: CONV_2D cannot be static with 2 bits"),
        (Rule(operation="CONV_2D", bits=4, granularity="block32"), "CONV_2D cannot be dynamic with 4 bits by block32"),
        (Rule(operation="FULLY_CONNECTED", bits=4, granularity="block256"), "not divisible by block size 256"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_named(bench: Workbench, artifact: bytes, rule: Rule, message: str) -> None:
    with pytest.raises(CompressionError, match=message) as caught:
        quantizer.quantize(artifact, [rule], bench.train.x[:10])
    assert "\n" not in str(caught.value)


def test_static_rules_need_samples_that_show_something(bench: Workbench, artifact: bytes) -> None:
    with pytest.raises(RecipeError, match="representative samples: there are none"):
        quantizer.quantize(artifact, [Rule(compute="static")], bench.train.x[:0])


def test_rules_need_a_float_artifact(bench: Workbench, artifact: bytes) -> None:
    once = quantizer.quantize(artifact, [Rule()], bench.train.x[:1]).content
    with pytest.raises(ArtifactError, match="is quantized; rules need a float artifact"):
        quantizer.quantize(once, [Rule()], bench.train.x[:1])
    with pytest.raises(ArtifactError, match=r"not a .tflite that can be read"):
        quantizer.quantize(b"no model", [Rule()], bench.train.x[:1])


@pytest.mark.parametrize(
    ("rule", "message"), [({"bits": 3}, "Invalid enum value 3"), ({"bit": 4}, "unknown field `bit`")]
)
def test_a_rule_that_makes_no_sense_is_refused_when_the_recipe_is_read(rule: dict[str, Any], message: str) -> None:
    stages = [{"stage": "float"}, {"stage": "mixed", "rules": [rule]}]
    with pytest.raises(RecipeError, match=message):
        recipe.from_fields({"name": "x", "stages": stages}, "r.toml")
