"""One sample at a time gives what a batch gives, to the bit, and refuses what a batch refuses."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract.errors import TransformError
from contract.single import SingleTransform, byte_table
from contract.transform import Clip, Impute, Reshape, Scale, Step, Transform, TransformSpec

SHAPE = (2, 3)
NUMBERS = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, -0.0, 1.0, 1e-30, 1e30])
DIVISORS = (st.floats(0.5, 100, width=32) | st.sampled_from([1.0, 255.0, -2.0, 1e-30])).filter(bool)
STEPS = st.one_of(
    st.builds(Impute, NUMBERS),
    st.tuples(NUMBERS, NUMBERS).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: Clip(*pair)),
    st.integers(0, 3).flatmap(
        lambda which: st.builds(
            Scale,
            st.lists(NUMBERS, min_size=1 + 2 * (which & 1), max_size=1 + 2 * (which & 1)),
            st.lists(DIVISORS, min_size=1 + (which & 2), max_size=1 + (which & 2)),
        )
    ),
)
RAW = (
    hnp.arrays(np.float64, SHAPE, elements=st.floats())
    | hnp.arrays(np.float32, SHAPE, elements=st.floats(-1e3, 1e3, width=32))
    | hnp.arrays(np.uint8, SHAPE)
    | hnp.arrays(np.int64, SHAPE)
    | hnp.arrays(np.bool_, SHAPE)
)


def _batch(transform: Transform, raw: np.ndarray) -> bytes | str:
    try:
        return transform.apply(raw[None]).tobytes()
    except TransformError as error:
        return str(error)


def _single(single: SingleTransform, raw: np.ndarray) -> bytes | str:
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            single.run(raw.astype(np.float32).reshape(-1))
        return single.values.tobytes()
    except TransformError as error:
        return str(error)


@given(st.lists(STEPS, max_size=4), st.lists(RAW, min_size=1, max_size=4), st.booleans())
def test_a_sample_alone_becomes_what_it_becomes_in_a_batch(
    steps: list[Step], raws: list[np.ndarray], flat: bool
) -> None:
    if flat:
        steps = [*steps, Reshape([6]), Clip(-1e3, 1e3)]
    transform = Transform(TransformSpec(input_shape=list(SHAPE), steps=steps, features=[]))
    single = SingleTransform(transform)
    for raw in raws:  # the buffer is used again and again, also after a refusal
        assert _single(single, raw) == _batch(transform, raw)
    assert single.values.shape == (1, *transform.output_shape)


@given(st.lists(STEPS, max_size=3), hnp.arrays(np.uint8, SHAPE))
def test_where_there_is_a_table_of_bytes_it_says_what_the_transform_says(steps: list[Step], raw: np.ndarray) -> None:
    transform = Transform(TransformSpec(input_shape=list(SHAPE), steps=steps, features=[]))
    table = byte_table(transform)
    if table is not None:
        assert table[raw].tobytes() == transform.apply(raw[None]).tobytes()


def test_there_is_no_table_where_the_place_matters_or_a_byte_becomes_infinite() -> None:
    def table(*steps: Step) -> np.ndarray | None:
        return byte_table(Transform(TransformSpec(input_shape=[2], steps=list(steps), features=[])))

    assert table(Scale([0.0], [255.0])) is not None
    assert table(Scale([0.0, 1.0], [255.0])) is None
    assert table(Scale([0.0], [1e-38])) is None


def test_a_value_too_large_for_its_square_is_no_error() -> None:
    transform = Transform(TransformSpec(input_shape=[2], steps=[Scale([1.0], [2.0])], features=[]))
    raw = np.array([3e38, 7.0])
    assert _single(SingleTransform(transform), raw) == transform.apply(raw[None]).tobytes()
