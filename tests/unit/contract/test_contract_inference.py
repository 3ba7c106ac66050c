"""The inference protocol: what comes in is checked to the byte, what goes out can be read by its own rules."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from contract import inference
from contract.errors import ContractError, MalformedError, TensorError

DTYPES = {"BOOL": "?", "UINT8": "u1", "INT8": "i1", "UINT16": "u2", "INT32": "i4", "INT64": "i8", "UINT64": "u8"}
DTYPES |= {"FP16": "f2", "FP32": "f4", "FP64": "f8"}


def request(**tensor: object) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2], **tensor}]}).encode()


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    name = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(arrays.array_shapes(max_dims=4, max_side=4))
    finite = {"allow_nan": False, "allow_infinity": False} if name.startswith("FP") else {}
    return name, draw(arrays.arrays(DTYPES[name], shape, elements=arrays.from_dtype(np.dtype(DTYPES[name]), **finite)))


@given(tensor=tensors(), nested=st.booleans())
def test_numbers_in_json_are_the_array_flat_or_nested(tensor: tuple[str, np.ndarray], nested: bool) -> None:
    datatype, array = tensor
    data = array.tolist() if nested else array.ravel().tolist()
    header = {"id": "7", "inputs": [{"name": "x", "shape": list(array.shape), "datatype": datatype, "data": data}]}
    got = inference.decode_request(json.dumps(header).encode())
    assert got.id == "7"
    assert got.inputs["x"].dtype == array.dtype
    np.testing.assert_array_equal(got.inputs["x"], array)


@given(items=st.lists(tensors(), min_size=1, max_size=3))
def test_tensors_after_the_json_are_the_arrays(items: list[tuple[str, np.ndarray]]) -> None:
    header = {
        "inputs": [
            {
                "name": f"x{i}",
                "shape": list(array.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for i, (datatype, array) in enumerate(items)
        ]
    }
    encoded = json.dumps(header).encode()
    body = encoded + b"".join(array.tobytes() for _, array in items)
    got = inference.decode_request(body, len(encoded))
    for i, (_, array) in enumerate(items):
        np.testing.assert_array_equal(got.inputs[f"x{i}"], array)
    with pytest.raises(ContractError):
        inference.decode_request(body[:-1], len(encoded))
    with pytest.raises(MalformedError, match="1 bytes after the last tensor"):
        inference.decode_request(body + b"\0", len(encoded))


def test_a_nan_in_the_binary_form_arrives_so_that_a_transform_may_impute_it() -> None:
    x = np.array([np.nan, 1], np.float32)
    header = request(data=None, parameters={"binary_data_size": 8}).replace(b', "data": null', b"")
    got = inference.decode_request(header.replace(b'"data": null, ', b"") + x.tobytes(), len(header))
    np.testing.assert_array_equal(got.inputs["x"], x)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "is 0, the body has 0"),
        (b"{", "not an inference request"),
        (b'{"inputs": 3}', "not an inference request"),
        (b"[" * 100_000, "not an inference request"),
        (request().replace(b"1", b"NaN", 1), "not an inference request"),
        (request(shape=[3]), r"shape \[3\] has 3 entries, data 2"),
        (request(shape=[]), "needs 1 to 8 positive sizes"),
        (request(shape=[-1]), "needs 1 to 8 positive sizes"),
        (request(shape=[0], data=[]), "needs 1 to 8 positive sizes"),
        (request(shape=[2] * 9), "needs 1 to 8 positive sizes"),
        (request(shape=[2**62, 2**62, 2**62]), "entries, data 2"),
        (request(datatype="BYTES"), "datatype 'BYTES' is none of BOOL"),
        (request(datatype="INT8", data=[1, 128]), "outside INT8, -128 to 127"),
        (request(datatype="UINT8", data=[1, -1]), "outside UINT8, 0 to 255"),
        (request(datatype="INT8", data=[1, 1.5]), "numbers that INT8 holds, has float64"),
        (request(datatype="UINT64", data=[1, 2**64]), "UINT64"),
        (request(datatype="BOOL", data=[1, 0]), "numbers that BOOL holds"),
        (request(data=[1, "2"]), "numbers that FP32 holds"),
        (request(data=[1, None]), "numbers that FP32 holds, has object"),
        (request(data=[[1], [2, 3]]), "no array of numbers"),
        (request(data={"a": 1}), "numbers that FP32 holds"),
        (request(parameters={"binary_data_size": 8}), "both data and binary_data_size"),
        (request().replace(b', "data": [1, 2]', b""), "no array of numbers"),
        (request().replace(b'"data": [1, 2]', b'"data": ' + b"[" * 70 + b"1" + b"]" * 70), "FP32 holds|no array"),
    ],
)
def test_what_is_no_request_is_refused_with_a_reason(body: bytes, says: str) -> None:
    with pytest.raises(ContractError, match=says):
        inference.decode_request(body)


def test_an_input_that_comes_twice_is_refused() -> None:
    twice = json.loads(request())
    twice["inputs"] *= 2
    with pytest.raises(TensorError, match="'x' comes twice"):
        inference.decode_request(json.dumps(twice).encode())


@pytest.mark.parametrize("length", [-1, 0, 10_000])
def test_a_header_length_outside_the_body_is_refused(length: int) -> None:
    with pytest.raises(MalformedError, match="Inference-Header-Content-Length"):
        inference.decode_request(request(), length)


@given(body=st.binary(max_size=200), length=st.none() | st.integers(-5, 300))
def test_random_bytes_are_a_contract_error_and_nothing_else(body: bytes, length: int | None) -> None:
    with pytest.raises(ContractError):
        inference.decode_request(body, length)


def test_outputs_may_be_asked_for_by_name_and_form() -> None:
    header = json.loads(request())
    assert inference.decode_request(json.dumps(header).encode()).binary is False
    header["parameters"] = {"binary_data_output": True}
    header["outputs"] = [{"name": "label"}, {"name": "logits", "parameters": {"binary_data": False}}]
    got = inference.decode_request(json.dumps(header).encode())
    assert got.binary
    assert dict(got.outputs) == {"label": True, "logits": False}


@pytest.mark.parametrize("binary", [False, True])
def test_an_answer_reads_back_in_either_form(binary: bool) -> None:
    probabilities = np.array([[0.25, 0.75]], np.float32)
    body, length = inference.encode_response(
        model="digits",
        version="3",
        request_id="q1",
        outputs={"probabilities": probabilities, "label": ["größer"]},
        binary=dict.fromkeys(("probabilities", "label"), binary),
        parameters={"variant": "int8"},
    )
    assert (length is not None) == binary
    header = json.loads(body[:length])
    assert (header["model_name"], header["model_version"], header["id"]) == ("digits", "3", "q1")
    first, second = header["outputs"]
    assert (first["datatype"], first["shape"], second["datatype"], second["shape"]) == ("FP32", [1, 2], "BYTES", [1])
    if binary:
        assert length is not None
        split = length + first["parameters"]["binary_data_size"]
        np.testing.assert_array_equal(np.frombuffer(body[length:split], np.float32), [0.25, 0.75])
        assert body[split:] == b"\x08\0\0\0" + "größer".encode()
    else:
        assert (first["data"], second["data"]) == ([0.25, 0.75], ["größer"])
