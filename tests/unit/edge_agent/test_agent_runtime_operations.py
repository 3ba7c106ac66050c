"""What a model asks for is read from its bytes, whatever they are."""

import contextlib

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import RuntimeModelError
from edge_agent.runtime_operations import check_legacy, operations
from tests.fakes import agent_models

NAMES = ("float", "int8", "dynamic", "training")
CODES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


@pytest.mark.parametrize("name", NAMES)
def test_operations_and_versions_are_those_that_the_full_reader_finds(name: str) -> None:
    content = agent_models.read(name)
    codes = schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes
    expected = [(CODES[max(one.builtinCode, one.deprecatedBuiltinCode)], one.version) for one in codes]
    assert [(one.name, one.version) for one in operations(content)] == expected


def test_a_model_of_dynamic_range_is_refused_by_operation_and_version() -> None:
    with pytest.raises(RuntimeModelError, match=r"FULLY_CONNECTED version 12 \(it knows up to 10\); int8 and float"):
        check_legacy(agent_models.read("dynamic"))


@pytest.mark.parametrize("name", ["float", "int8"])
def test_what_the_old_runtime_knows_is_let_through(name: str) -> None:
    check_legacy(agent_models.read(name))


def test_a_custom_operation_and_one_from_the_future_are_named() -> None:
    codes = [
        schema.OperatorCodeT(builtinCode=32, deprecatedBuiltinCode=32, customCode=b"Fft", version=1),
        schema.OperatorCodeT(builtinCode=4000, deprecatedBuiltinCode=127, version=1),
        schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.STABLEHLO_ADD, deprecatedBuiltinCode=127, version=1),
    ]
    builder = flatbuffers.Builder(0)
    builder.Finish(schema.ModelT(version=3, operatorCodes=codes).Pack(builder), b"TFL3")
    with pytest.raises(RuntimeModelError, match=r"custom operation 'Fft' .*, operation number 4000 .*, STABLEHLO_ADD"):
        check_legacy(bytes(builder.Output()))


def test_a_model_without_operations_asks_for_nothing() -> None:
    builder = flatbuffers.Builder(0)
    builder.Finish(schema.ModelT(version=3).Pack(builder), b"TFL3")
    assert operations(bytes(builder.Output())) == []


@given(st.binary(max_size=200), st.integers(0, 200))
def test_bytes_that_are_no_model_are_refused_and_nothing_else_happens(data: bytes, cut: int) -> None:
    with contextlib.suppress(RuntimeModelError):
        operations(data)
    with contextlib.suppress(RuntimeModelError):
        operations(data[:4] + b"TFL3" + data[8:])
    with contextlib.suppress(RuntimeModelError):
        operations(agent_models.read("int8")[:cut])


@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=8), st.sampled_from(NAMES))
def test_a_model_with_changed_bytes_is_read_or_refused(changes: list[tuple[int, int]], name: str) -> None:
    content = bytearray(agent_models.read(name))
    for place, value in changes:
        content[place if place < 300 else -(place - 299)] = value
    with contextlib.suppress(RuntimeModelError):
        assert len(operations(bytes(content))) <= 1024
