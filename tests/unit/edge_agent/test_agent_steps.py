"""Samples that are inferred one by one: the outputs and the counts of the batch's way, whatever comes in between."""

import gc
import weakref
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract import profile
from contract.bundle import unpack
from contract.errors import TransformError
from contract.transform import Clip, Impute, Scale, Step, Transform, TransformSpec
from edge_agent import runtime as runtimes
from edge_agent import steps
from edge_agent.config import Health
from edge_agent.errors import RuntimeModelError
from edge_agent.health import Meter
from edge_agent.runtime import Runtime, softmax
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.serving import Model
from edge_agent.steps import Steps
from tests.fakes import agent_bundles, agent_models

NAMES = ("float", "int8")
BUNDLES = {name: agent_bundles.make(variant=name) for name in NAMES}
MODELS = {name: Model(agent_bundles.ref(data), unpack(data), RuntimeOptions()) for name, data in BUNDLES.items()}
SAMPLES = (
    hnp.arrays(np.uint8, agent_models.SHAPE, elements=st.integers(0, 255))
    | hnp.arrays(np.float64, agent_models.SHAPE, elements=st.floats(-20, 40))
    | hnp.arrays(np.float32, agent_models.SHAPE, elements=st.floats(-20, 40, width=32))
    | hnp.arrays(np.int16, agent_models.SHAPE, elements=st.integers(-99, 99))
)


@pytest.mark.parametrize("name", NAMES)
@given(samples=st.lists(SAMPLES, max_size=20))
def test_every_output_and_every_count_is_that_of_a_batch(name: str, samples: list[np.ndarray]) -> None:
    model = MODELS[name]
    expected = profile.zero(model.profile)
    for sample in samples:
        got = model.probabilities(model.step(sample))
        inference = model.infer(sample[None])
        assert got.tobytes() == inference.probabilities.tobytes()
        expected = profile.add(expected, model.count(inference, slice(None)))
    assert model.take() == expected
    assert model.take() == profile.zero(model.profile)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_a_ring_that_runs_over_many_times_loses_nothing(name: str, dtype: Any) -> None:
    model = MODELS[name]
    raw = agent_models.samples(1000, seed=5)[0].astype(dtype)
    for sample in raw:
        model.step(sample)
    assert model.take() == model.count(model.infer(raw), slice(None))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("divisor", [255.0, 16.0, -3.0])
def test_bytes_go_by_a_table_or_an_addition_and_give_what_arithmetic_gives(name: str, divisor: float) -> None:
    transform = Transform(
        TransformSpec(input_shape=list(agent_models.SHAPE), steps=[Scale([0.0], [divisor])], features=[])
    )
    runtime = Runtime(agent_models.read(name))
    spec = profile.ProfileSpec(features=[], classes=agent_models.CLASSES, confidence_edges=[0.5])
    path = Steps(transform, runtime, spec, lambda outputs: softmax(runtime.dequantize(outputs)))
    for sample in np.random.default_rng(0).integers(0, 256, (50, *agent_models.SHAPE)).astype(np.uint8):
        expected = runtime.logits(transform.apply(sample[None]))
        assert runtime.dequantize(path.step(sample)).tobytes() == expected.tobytes()


def test_a_model_whose_input_is_the_byte_moved_is_fed_by_one_addition() -> None:
    runtime = Runtime(agent_models.read("int8"))
    scale = float(np.float32(runtime._input["quantization"][0]))
    transform = Transform(
        TransformSpec(input_shape=list(agent_models.SHAPE), steps=[Scale([0.0], [1 / scale])], features=[])
    )
    spec = profile.ProfileSpec(features=[], classes=agent_models.CLASSES, confidence_edges=[0.5])
    path = Steps(transform, runtime, spec, lambda outputs: softmax(runtime.dequantize(outputs)))
    raw = np.random.default_rng(0).integers(0, 256, (300, *agent_models.SHAPE)).astype(np.uint8)
    for sample in raw:
        expected = runtime.logits(transform.apply(sample[None]))
        assert runtime.dequantize(path.step(sample)).tobytes() == expected.tobytes()
    assert isinstance(path._lane, steps._Bytes)
    assert path._lane._shift is not None
    assert path.take().samples == 300


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.float16, np.float32])
@given(data=st.data())
def test_a_sample_is_quantised_as_a_batch_is(dtype: Any, data: st.DataObject) -> None:
    scale = data.draw(st.floats(2**-20, 10, width=32) | st.just(0.0))
    detail = {"dtype": dtype, "quantization": (scale, data.draw(st.integers(-128, 127)))}
    values = data.draw(hnp.arrays(np.float32, (1, 6), elements=st.floats(-1e4, 1e4, width=32)))
    quantizer = runtimes.Quantizer((6,), detail)
    for turn in (values, -values):
        with np.errstate(over="ignore"):
            assert quantizer(turn).tobytes() == runtimes._quantize(turn, detail).tobytes()


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (np.zeros((4, 4)), "shape"),
        (np.zeros((1, 4, 4, 1)), "shape"),
        (np.zeros((4, 4, 1), np.complex64), "real numbers"),
        (np.full((4, 4, 1), np.nan), "not finite"),
        (np.full((4, 4, 1), 1e300), "not finite"),
    ],
)
def test_what_the_transform_refuses_is_refused_and_not_counted(sample: np.ndarray, message: str) -> None:
    model = MODELS["float"]
    good = agent_models.samples(2, seed=1)[0]
    model.step(good[0])
    with pytest.raises(TransformError, match=message):
        model.step(sample)
    model.step(good[1])
    assert model.take() == model.count(model.infer(good), slice(None))


def _with_steps(taken: list[Step]) -> Model:
    bundle = unpack(BUNDLES["float"])
    bundle.transform = Transform(msgspec.structs.replace(agent_bundles.TRANSFORM, steps=taken))
    return Model(agent_bundles.ref(BUNDLES["float"]), bundle, RuntimeOptions())


def test_an_output_that_is_not_finite_is_refused_and_not_counted() -> None:
    model = _with_steps([])
    sample = np.full(agent_models.SHAPE, 3e38)
    for infer in (lambda: model.step(sample), lambda: model.infer(sample[None])):
        with pytest.raises(RuntimeModelError, match="not finite"):
            infer()
    assert model.take().samples == 0


def test_a_missing_value_that_the_transform_fills_in_is_counted_as_filled_in() -> None:
    model = _with_steps([Impute(8.0), Clip(0.0, 16.0), Scale([0.0], [16.0])])
    raw = agent_models.samples(9, seed=2)[0].astype(np.float32)
    raw[::2, 1, 1] = np.nan
    raw[1, 0, 0] = np.inf
    outputs = np.concatenate([model.step(sample) for sample in raw])
    assert model.probabilities(outputs).tobytes() == model.infer(raw).probabilities.tobytes()
    assert model.take() == model.count(model.infer(raw), slice(None))


def test_an_output_stays_what_it_was_when_more_samples_come() -> None:
    model = MODELS["int8"]
    raw = agent_models.samples(300, seed=3)[0]
    kept = [model.step(sample) for sample in raw]
    assert model.probabilities(np.concatenate(kept)).tobytes() == model.infer(raw).probabilities.tobytes()
    model.take()


@pytest.mark.parametrize("meter", [None, Meter(Health())])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_model_that_was_swapped_out_gives_its_memory_back_at_once(meter: Meter | None, dtype: Any) -> None:
    model = Model(agent_bundles.ref(BUNDLES["int8"]), unpack(BUNDLES["int8"]), RuntimeOptions())
    model.meter = meter
    model.step(agent_models.samples(1, seed=0)[0][0].astype(dtype))
    gone = weakref.ref(model), weakref.ref(model._runtime), weakref.ref(model._steps)
    gc.disable()  # nothing may wait for it
    try:
        del model
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()
