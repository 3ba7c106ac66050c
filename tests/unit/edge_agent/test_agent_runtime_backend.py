"""Options reach the library, and what it cannot do is a sentence."""

import ctypes.util
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edge_agent.config import Config
from edge_agent.config import Runtime as RuntimeSection
from edge_agent.errors import RuntimeModelError
from edge_agent.runtime import Runtime
from edge_agent.runtime_backend import RuntimeOptions, inference_options, runtime_version, training_options
from tests.fakes import agent_models


@pytest.fixture(scope="module")
def delegate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library that is a delegate."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to make a delegate with")
    library = tmp_path_factory.mktemp("delegate") / "delegate.so"
    source = Path(__file__).parents[2] / "fakes" / "delegate.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("options", [RuntimeOptions(xnnpack=False), RuntimeOptions(threads=2), RuntimeOptions()])
@pytest.mark.parametrize("name", ["float", "int8"])
def test_a_model_gives_the_same_whatever_runs_it(name: str, options: RuntimeOptions) -> None:
    x = agent_models.samples(20, seed=3)[0].astype(np.float32) / 16
    expected = Runtime(agent_models.read(name)).logits(x)
    np.testing.assert_allclose(Runtime(agent_models.read(name), options).logits(x), expected, atol=0.2)


def test_without_xnnpack_no_node_is_given_to_it() -> None:
    x = np.zeros((1, *agent_models.SHAPE), np.float32)
    for xnnpack in (True, False):
        runtime = Runtime(agent_models.read("float"), RuntimeOptions(xnnpack=xnnpack))
        runtime.logits(x)
        operations = [operation["op_name"] for operation in runtime._interpreter._get_ops_details()]
        assert ("DELEGATE" in operations) is xnnpack


def test_a_delegate_gets_its_options_and_the_model_and_the_model_runs(delegate: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = RuntimeOptions(delegate=str(delegate), delegate_options={"log": str(log), "cores": "2"})
    x = agent_models.samples(5, seed=3)[0].astype(np.float32) / 16
    logits = Runtime(agent_models.read("float"), options).logits(x)
    np.testing.assert_allclose(logits, Runtime(agent_models.read("float")).logits(x), atol=1e-5)
    assert log.read_text() == "cores=2\nprepared\n"


def test_a_delegate_that_refuses_its_options_says_why(delegate: Path) -> None:
    with pytest.raises(RuntimeModelError, match=r"runtime\.delegate: .*delegate\.so refuses.*no log was named"):
        Runtime(agent_models.read("float"), RuntimeOptions(delegate=str(delegate)))


def test_a_delegate_that_is_not_there_or_is_no_library_is_named(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    for path in (str(tmp_path / "missing.so"), str(text)):
        with pytest.raises(RuntimeModelError, match=rf"runtime\.delegate: {path} cannot be loaded"):
            Runtime(agent_models.read("float"), RuntimeOptions(delegate=path))


def test_a_library_that_is_no_delegate_is_named_with_what_it_lacks() -> None:
    library = ctypes.util.find_library("m")
    assert library
    with pytest.raises(RuntimeModelError, match="is not a delegate, it lacks tflite_plugin_create_delegate"):
        Runtime(agent_models.read("float"), RuntimeOptions(delegate=library))


def test_training_follows_threads_and_kernels_and_leaves_the_delegate_alone() -> None:
    section = RuntimeSection(xnnpack=False, delegate="x.so", delegate_options={"a": "b"})
    config = Config(device="d", broker_host="h", broker_port=1, threads=3, runtime=section)
    assert inference_options(config) == RuntimeOptions(
        threads=3, xnnpack=False, delegate="x.so", delegate_options={"a": "b"}
    )
    assert training_options(config) == RuntimeOptions(threads=3, xnnpack=False)


def test_the_library_says_its_name_and_version() -> None:
    name, version = runtime_version().split(" ")
    assert name == "ai-edge-litert"
    assert [int(part) for part in version.split(".")] >= [2, 3, 0]
