"""The gate: pure decisions."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression import gate
from compression.errors import GateError, RecipeError
from compression.measure import Report, Worst
from compression.parts import golden_tolerance


def report(drop: float, size: int, **others: object) -> Report:
    fields: dict[str, object] = {
        "validation_accuracy": 0.9 - drop,
        "drop": drop,
        "drop_low": drop - 0.01,
        "drop_high": drop + 0.01,
        "calibration_error": 0.03,
        "calibration_change": 0.01,
        "bytes": 4 * size,
        "gzip_bytes": size + 10,
        "zstd_bytes": size,
        "arena_bytes": 640,
        "p50_us": 1.0,
        "p95_us": 2.0,
        "threads": 2,
        "p50_threads_us": 1.0,
        "p95_threads_us": 2.0,
        "worst_class": Worst(name="seven", accuracy=0.8, samples=10),
        "worst_device": Worst(name="meter-1", accuracy=0.7, samples=10),
        "temperature": 1.0,
    }
    return msgspec.convert(fields | others, Report)


gates = st.builds(
    gate.Gates,
    max_drop=st.none() | st.floats(0, 0.1),
    max_zstd_bytes=st.none() | st.integers(1, 9),
    min_worst_class=st.none() | st.floats(0.7, 0.9),
    p95_us=st.dictionaries(st.sampled_from(["local", "nano"]), st.floats(1, 4)),
    require_measurement=st.booleans(),
)
reports = st.dictionaries(
    st.text("abc", min_size=1, max_size=4), st.builds(report, st.floats(-0.1, 0.2), st.integers(1, 9)), min_size=1
)


@given(st.builds(report, st.floats(-0.1, 0.2), st.integers(1, 9)), gates, gates, st.booleans())
def test_of_two_gates_what_passes_both_passes(one: Report, own: gate.Gates, asked: gate.Gates, measured: bool) -> None:
    known = {"nano": 2.5} if measured else {}
    alone = [gate.reasons(one, each, known) for each in (own, asked)]
    required = own.require_measurement or asked.require_measurement
    if not measured and required and "nano" in {**own.p95_us, **asked.p95_us}:
        assert gate.reasons(one, gate.stricter(own, asked), known)  # who requires it, requires it of every class
    else:
        assert bool(gate.reasons(one, gate.stricter(own, asked), known)) == any(alone)


@given(reports, st.floats(0, 0.1))
def test_the_choice_is_the_smallest_that_may_ship(found: dict[str, Report], max_drop: float) -> None:
    passed = {name for name, one in found.items() if not gate.reasons(one, gate.Gates(max_drop=max_drop))}
    if not passed:
        with pytest.raises(GateError):
            gate.choose(found, gate.Gates(max_drop=max_drop))
        return
    chosen = gate.choose(found, gate.Gates(max_drop=max_drop))
    assert chosen in passed
    assert found[chosen].zstd_bytes == min(found[name].zstd_bytes for name in passed)


@pytest.mark.parametrize(
    ("gates", "reason"),
    [
        ({"max_drop": 0.02}, "loses 5 points of validation accuracy, 2 are allowed"),
        ({"max_drop": None, "max_drop_high": 0.05}, "may lose 6 points (95 % interval), 5 are allowed"),
        ({"max_drop": 0.05, "max_calibration_change": 0.005}, "adds 1 points of ECE, 0.5 are allowed"),
        ({"max_drop": 0.05, "max_bytes": 3999}, "has 4,000 bytes, 3,999 are allowed"),
        ({"max_drop": 0.05, "max_zstd_bytes": 999}, "has 1,000 bytes on the way (zstd), 999 are allowed"),
        ({"max_drop": 0.05, "max_arena_bytes": 639}, "needs 640 bytes of activations, 639 are allowed"),
        ({"max_drop": 0.05, "p95_us": {"local": 1.5}}, "takes 2 us (p95) on local, 1.5 are allowed"),
        ({"max_drop": 0.05, "p95_us": {"pi": 30.0}}, "takes 40 us (p95) on pi, 30 are allowed"),
        ({"max_drop": 0.05, "min_worst_class": 0.85}, "answers class 'seven' rightly in 80.0 %, 85.0 % are needed"),
        ({"max_drop": 0.05, "min_worst_device": 0.75}, "answers device 'meter-1' rightly in 70.0 %, 75.0 % are needed"),
        (
            {"max_drop": 0.05, "p95_us": {"nano": 1.0}, "require_measurement": True},
            "was not measured on hardware class nano; run: fieldfare compress bench BUNDLE --on DEVICE",
        ),
    ],
)
def test_each_gate_says_what_it_found_and_what_it_allows(gates: dict[str, object], reason: str) -> None:
    found = gate.from_fields(gates, "m.toml")
    assert gate.reasons(report(0.05, 1000), found, {"pi": 40.0}) == [reason]


def test_a_variant_that_holds_every_gate_may_ship() -> None:
    fields = {"max_drop": 0.05, "max_drop_high": 0.06, "max_bytes": 4000, "p95_us": {"local": 2.0, "unknown": 1.0}}
    assert gate.reasons(report(0.05, 1000), gate.from_fields(fields, "m.toml")) == []


@pytest.mark.parametrize("field", ["drop", "drop_high", "calibration_change", "p95_us"])
def test_a_figure_that_is_no_number_fails_its_gate(field: str) -> None:
    fields = {"max_drop": 1.0, "max_drop_high": 1.0, "max_calibration_change": 1.0, "p95_us": {"local": 9.0}}
    gates = gate.from_fields(fields, "m.toml")
    assert gate.reasons(report(0.0, 1), gates) == []
    assert gate.reasons(msgspec.structs.replace(report(0.0, 1), **{field: float("nan")}), gates)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[gates]\nmax_dorp = 0.1", "m.toml: unknown gate 'max_dorp'; did you mean 'max_drop'"),
        ("[gates]\nmax_drop = 2", r"m.toml: gates: .*<= 1.0.*max_drop"),
        ("[gates]\np95_us = { pi = 0 }", r"m.toml: gates: .*> 0.0.*p95_us"),
        ("[gate]\n", r"m.toml: gates are one table \[gates\], found \['gate'\]"),
        ("gates = ", "m.toml: "),
    ],
)
def test_gates_that_make_no_sense_are_refused_with_the_key_at_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        gate.load(path)


def test_gates_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.toml"
    path.write_text("[gates]\nmax_drop = 0.01\np95_us = { local = 900, pi4 = 2000 }\n")
    assert gate.load(path) == gate.Gates(max_drop=0.01, p95_us={"local": 900.0, "pi4": 2000.0})


def test_integer_outputs_may_differ_by_steps_and_float_outputs_hardly() -> None:
    assert golden_tolerance(0.1) == pytest.approx(0.25)
    assert golden_tolerance(0.0) < 0.01
    assert msgspec.to_builtins(report(0.0, 1))["bytes"] == 4
