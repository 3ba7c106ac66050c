import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from contract import tensors
from contract.errors import ContractError, TensorError, TooLargeError

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20).filter(
    lambda name: name != "__metadata__"
)
ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float16, np.int64, np.uint8, np.bool_]), hnp.array_shapes(min_dims=0, max_side=4)
)


@settings(max_examples=100)
@given(st.dictionaries(NAMES, ARRAYS, max_size=6))
def test_arrays_come_back_with_their_names_order_dtypes_and_bits(arrays: dict[str, np.ndarray]) -> None:
    loaded = tensors.load(tensors.dump(arrays))

    assert list(loaded) == list(arrays)
    for name, array in arrays.items():
        assert loaded[name].dtype == array.dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


def test_the_same_arrays_give_the_same_bytes() -> None:
    arrays = {"b": np.ones(3, np.float32), "a": np.zeros((2, 2), np.float32)}
    assert tensors.dump(arrays) == tensors.dump({name: array.copy() for name, array in arrays.items()})


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(data: bytes) -> None:
    with contextlib.suppress(ContractError):
        tensors.load(data)


def test_a_truncated_file_is_refused_at_every_length() -> None:
    data = tensors.dump({"w": np.arange(6, dtype=np.float32)})
    for length in range(len(data)):
        with pytest.raises(TensorError):
            tensors.load(data[:length])


def _file(name: str, *, dtype: object = "F32", order: str = "null") -> bytes:
    header = {"__metadata__": {"order": order}, name: {"dtype": dtype, "shape": [1], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(4)


@pytest.mark.parametrize(("name", "order"), [("w", '["v"]'), ("1", "[1]"), ("['a']", '[["a"]]'), ("w", '{"w": 1}')])
def test_an_order_that_does_not_name_every_tensor_is_refused(name: str, order: str) -> None:
    with pytest.raises(TensorError, match="every tensor once"):
        tensors.load(_file(name, order=order))


@pytest.mark.parametrize("order", ["[", "[" * 100_000, "9" * 10_000])
def test_an_order_that_is_no_json_is_refused(order: str) -> None:
    with pytest.raises(TensorError, match="JSON list"):
        tensors.load(_file("w", order=order))


@pytest.mark.parametrize("dtype", [[], {}, None, 4, "BF16"])
def test_a_dtype_that_is_none_is_refused(dtype: object) -> None:
    with pytest.raises(TensorError, match="unsupported dtype"):
        tensors.load(_file("w", dtype=dtype))


def test_a_file_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLargeError):
        tensors.load(tensors.dump({"w": np.zeros(100, np.float32)}), limit=100)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"v": np.zeros(2, np.float32)}, "expected tensors"),
        ({"w": np.zeros(3, np.float32)}, r"\(2,\), got float32\(3,\)"),
        ({"w": np.zeros(2, np.float64)}, "got float64"),
        ({"w": np.array([1, np.nan], np.float32)}, "1 values are not finite"),
        ({"w": np.array([np.inf, -np.inf], np.float32)}, "2 values are not finite"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_what_differs(wrong: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(TensorError, match=message):
        tensors.check_like(wrong, {"w": np.ones(2, np.float32)})
