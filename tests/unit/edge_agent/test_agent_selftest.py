"""The self-test: a bundle is tried in a child with the real runtime, and whatever that does is a sentence."""

import os
import sys
import threading
from pathlib import Path

import pytest

from contract import bundle
from contract.bundle import unpack
from edge_agent import selftest
from edge_agent.errors import RefusedError, UnavailableError
from tests.fakes import agent_bundles
from tests.fakes.agent_parts import CONFIG

GOING_ON = threading.Event()


def _write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "bundle.zip"
    path.write_bytes(data)
    return path


def _with_model(model: bytes) -> bytes:
    """A bundle that holds together around any bytes as its model."""
    made = unpack(agent_bundles.make(training=None))
    files = {**made.files, "inference": model}
    return bundle.pack(made.manifest, files)


def _run(path: Path, data: bytes) -> int:
    return selftest.run(path, agent_bundles.ref(data), CONFIG, GOING_ON)


def test_a_good_bundle_passes_and_the_memory_it_takes_is_measured(tmp_path: Path) -> None:
    data = agent_bundles.make()
    took = _run(_write(tmp_path, data), data)
    assert len(unpack(data).files["inference"]) <= took < 100_000_000


@pytest.mark.parametrize(
    ("model", "reason"),
    [(b"no model at all", "cannot load"), (agent_bundles.agent_models.read("float")[:600], "cannot load|SIG")],
)
def test_bytes_that_are_no_model_are_refused(tmp_path: Path, model: bytes, reason: str) -> None:
    data = _with_model(model)
    with pytest.raises(RefusedError, match=reason):
        _run(_write(tmp_path, data), data)


def test_a_model_that_this_runtime_refuses_is_refused_with_the_runtimes_words(tmp_path: Path) -> None:
    root = Path(os.environ.get("FIELDFARE_DATA", Path(__file__).parents[4] / "shared" / "data"))
    model = root / "tflite_micro" / "person_detect.tflite"
    if not model.is_file():
        pytest.skip(f"{model} is not here; set FIELDFARE_DATA")
    data = _with_model(model.read_bytes())
    with pytest.raises(RefusedError) as caught:
        _run(_write(tmp_path, data), data)
    assert "LiteRT" in str(caught.value) or "litert" in str(caught.value)


def test_a_child_that_crashes_never_ends_or_talks_nonsense_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = agent_bundles.make()
    path = _write(tmp_path, data)
    monkeypatch.setattr(selftest, "_PATIENCE_S", 2.0)
    for code, reason in (
        ("import os; os.abort()", "was ended by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("raise SystemExit('no such delegate')", "ended with status 1: no such delegate"),
        ("print('hello')", "gave no answer"),
        ("import time; time.sleep(60)", "did not end within 2 s"),
    ):
        program = tmp_path / "python"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
        program.chmod(0o700)
        with monkeypatch.context() as other:
            other.setattr(selftest.sys, "executable", str(program))
            with pytest.raises(RefusedError, match=reason):
                _run(path, data)


def test_a_service_manager_that_lets_nobody_lower_a_priority_prevents_no_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = agent_bundles.make()
    program = tmp_path / "python"
    forbidden = "import os; os.nice = lambda _: os.stat('/proc/no'); from edge_agent.selftest import main; main()"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{forbidden}"\n')
    program.chmod(0o700)
    monkeypatch.setattr(selftest.sys, "executable", str(program))
    assert _run(_write(tmp_path, data), data) > 0


def test_an_agent_that_ends_does_not_wait_for_a_self_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = agent_bundles.make()
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o700)
    monkeypatch.setattr(selftest.sys, "executable", str(program))
    ends = threading.Event()
    ends.set()
    with pytest.raises(UnavailableError, match="the agent ends"):
        selftest.run(_write(tmp_path, data), agent_bundles.ref(data), CONFIG, ends)


def test_another_file_than_was_signed_and_none_at_all_are_refused(tmp_path: Path) -> None:
    data = agent_bundles.make()
    with pytest.raises(RefusedError, match="SHA-256"):
        _run(_write(tmp_path, data[:-1]), data)
    (tmp_path / "bundle.zip").unlink()
    with pytest.raises(RefusedError, match="cannot be read"):
        _run(tmp_path / "bundle.zip", data)
