"""What devices measured, as gates use it."""

from typing import Any

import pytest

from compression import bench, gate
from compression.errors import BenchError
from compression.gate import Gates
from contract.messages import Measured
from coordinator.client import Bundle, DeviceCommand, Measurement
from tests.unit.compression.test_compression_gate import report


def measurement(hardware_class: str, p95_us: float, id: str = "c1") -> Measurement:  # noqa: A002 its name
    measured = Measured(
        runtime="r",
        calls=100,
        p50_us=1.0,
        p95_us=p95_us,
        threads=2,
        p50_threads_us=1.0,
        p95_threads_us=1.0,
        load_us=1.0,
        peak_bytes=1,
    )
    return Measurement(
        id=id,
        device="meter-1",
        hardware_class=hardware_class,
        bundle_sha256="ab" * 32,
        artifact_sha256="f" * 64,
        measured=measured,
        measured_at=1.0,
    )


def made(sha256: str, version: int = 1) -> Bundle:
    return Bundle(sha256=sha256, model="digits", version=version, variant="int8", target="t", size=1, created_at=1.0)


def test_the_newest_measurement_of_a_hardware_class_counts() -> None:
    found = [measurement("nano", 3.0), measurement("nano", 9.0), measurement("mini", 5.0)]  # newest first
    assert bench.newest(found) == {"nano": 3.0, "mini": 5.0}


def test_a_gate_of_a_hardware_class_looks_at_what_was_measured_there() -> None:
    gates = Gates(p95_us={"nano": 4.0})
    assert gate.reasons(report(0.0, 1), gates, bench.newest([measurement("nano", 3.0)])) == []
    assert "9 us (p95) on nano, 4 are allowed" in gate.reasons(report(0.0, 1), gates, {"nano": 9.0})[0]


def test_a_hardware_class_without_a_measurement_is_named_with_what_to_run_and_fails_where_it_is_required() -> None:
    gates = Gates(p95_us={"nano": 4.0, "mini": 4.0, "local": 4.0})
    assert gate.reasons(report(0.0, 1), gates, {"mini": 1.0}) == []
    (note,) = bench.missing(gates, {"mini": 1.0}, gate.LOCAL)
    assert "nano" in note
    assert "fieldfare compress bench" in note
    strict = Gates(p95_us={"nano": 4.0}, require_measurement=True)
    (reason,) = gate.reasons(report(0.0, 1), strict, {})
    assert "fieldfare compress bench" in reason


def test_a_person_names_a_bundle_by_its_digest_or_its_version() -> None:
    listed = [made("aa" * 32, 2), made("ab" * 32), made("cd" * 32)]
    assert bench.named(listed, "digits:1").sha256 == "ab" * 32
    assert bench.named(listed, "cdcdcd").sha256 == "cd" * 32
    for name in ("digits:7", "other:1", "aa", "eeeeeeee", ""):
        with pytest.raises(BenchError, match="fieldfare models bundles"):
            bench.named(listed, name)


def test_a_refusal_of_the_device_is_one_sentence() -> None:
    class Refusing:
        def bundles(self) -> list[Bundle]:
            return [made("ab" * 32)]

        def bench(self, device: str, sha256: str) -> DeviceCommand:
            fields: dict[str, Any] = {"id": "c1", "device": device, "kind": "bench", "level": "info", "seconds": 0.0}
            times = {"created_at": 1.0, "expires_at": 2.0, "sent_at": None, "answered_at": 1.0}
            return DeviceCommand(**fields, **times, error="the device is busy", sha256=None, size=0)

        def wait_command(self, command: DeviceCommand, *, timeout_s: float) -> DeviceCommand:
            return command

    with pytest.raises(BenchError, match="meter-1 did not measure abababababab: the device is busy"):
        bench.bench(Refusing(), "digits:1", "meter-1")  # type: ignore[arg-type]  # the methods that matter
