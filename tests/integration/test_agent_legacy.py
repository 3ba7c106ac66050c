"""A device that is too old for ai-edge-litert: tflite-runtime and numpy 1.26 in an environment of their own."""

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
from ai_edge_litert import schema_py_generated as schema

from edge_agent.runtime_operations import _table
from tests.fakes import agent_bundles, agent_models

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the extra `agent-legacy` and what the contract needs."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("tflite-runtime 2.14 has wheels up to Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["optional-dependencies"]["agent-legacy"]
    wanted += [name for name in project["dependencies"] if name.startswith(("msgspec", "safetensors"))]
    folder = tmp_path_factory.mktemp("legacy") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--only-binary", ":all:"]
    done = subprocess.run([*pip, *wanted], capture_output=True, text=True, timeout=240, check=False)
    if done.returncode:
        message = f"tflite-runtime cannot be installed here: {done.stderr.strip()[-300:]}"
        if os.environ.get("FIELDFARE_NO_SKIPS"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return python


@pytest.fixture(scope="module")
def said(device: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the device says of an int8 bundle, a dynamic-range model, and every operation at its last known version."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "bundle.zip").write_bytes(agent_bundles.make(variant="int8"))
    (folder / "dynamic.tflite").write_bytes(agent_models.read("dynamic"))
    (folder / "operations").mkdir()
    for code, (name, known) in enumerate(_table()):
        if name in {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES"}:
            continue
        for version in {max(known, 1), known + 1}:
            (folder / "operations" / f"{name}-{version}.tflite").write_bytes(_one_operation(code, version))
    command = [str(device), str(ROOT / "tests" / "fakes" / "legacy_device.py"), str(folder)]
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _one_operation(code: int, version: int) -> bytes:
    operation = schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)
    empty = schema.SubGraphT(tensors=[], inputs=[], outputs=[], operators=[])
    model = schema.ModelT(version=3, operatorCodes=[operation], subgraphs=[empty], buffers=[schema.BufferT()])
    builder = flatbuffers.Builder(0)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_the_agent_falls_back_to_the_old_runtime_and_says_so(said: dict[str, Any]) -> None:
    assert said["runtime"].startswith("tflite-runtime 2.14.")
    assert said["numpy"].startswith("1.26.")
    assert said["loaded"] == ["tflite_runtime"]


def test_an_int8_bundle_gives_its_golden_vectors_there(said: dict[str, Any]) -> None:
    assert said["worst"] <= 0.2  # the manifest's tolerance
    assert said["without_xnnpack"] <= 0.2


def test_single_samples_and_batches_agree_there_too_to_the_last_count(said: dict[str, Any]) -> None:
    assert said["same"]
    assert said["counted"]


def test_a_dynamic_range_model_is_refused_by_operation_and_version(said: dict[str, Any]) -> None:
    assert "FULLY_CONNECTED version 12 (it knows up to 10)" in said["dynamic"]


def test_training_is_refused_there(said: dict[str, Any]) -> None:
    assert said["training"] == "tflite-runtime is for inference only; training needs ai-edge-litert"


def test_the_agent_knows_of_every_operation_up_to_which_version_the_old_runtime_loads_it(said: dict[str, Any]) -> None:
    assert said["unknown"] == []
