"""The gate: pure decisions."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import gate
from compression.errors import GateError
from compression.gate import Report
from compression.parts import golden_tolerance


def report(drop: float, size: int) -> Report:
    return Report(
        accuracy=0.9,
        validation_accuracy=0.9 - drop,
        drop=drop,
        bytes=4 * size,
        gzip_bytes=size + 10,
        zstd_bytes=size,
        p50_us=1.0,
        p95_us=2.0,
        temperature=1.0,
    )


reports = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.builds(report, st.floats(-0.1, 0.2), st.integers(1, 9)), min_size=1
)


@given(reports, st.floats(0, 0.1))
def test_the_choice_is_the_smallest_that_may_ship(found: dict[str, Report], max_drop: float) -> None:
    passed = {name for name, one in found.items() if not gate.reasons(one, max_drop=max_drop)}
    if not passed:
        with pytest.raises(GateError):
            gate.choose(found, max_drop=max_drop)
        return
    chosen = gate.choose(found, max_drop=max_drop)
    assert chosen in passed
    assert found[chosen].zstd_bytes == min(found[name].zstd_bytes for name in passed)


def test_a_variant_that_loses_too_much_says_how_much() -> None:
    assert gate.reasons(report(0.05, 1), max_drop=0.02) == [
        "loses 5.0 points of validation accuracy, 2.0 are allowed",
    ]
    assert gate.reasons(report(0.02, 1), max_drop=0.02) == []


def test_a_variant_without_a_number_may_not_ship() -> None:
    assert gate.reasons(report(float("nan"), 1), max_drop=0.5)


def test_integer_outputs_may_differ_by_steps_and_float_outputs_hardly() -> None:
    assert golden_tolerance(0.1) == pytest.approx(0.25)
    assert golden_tolerance(0.0) < 0.01
    assert msgspec.to_builtins(report(0.0, 1))["bytes"] == 4
