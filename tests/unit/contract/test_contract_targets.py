import subprocess
import sys

import pytest

from contract import targets
from contract.errors import BundleError
from tests.fakes import agent_bundles


def unmet(classes: list[str] = [], agent: str = "", runtime: str = "") -> str | None:  # noqa: B006  # never changed
    return targets.unmet(
        classes, agent, runtime, hardware_class="x86-64", agent_version="0.1.0", runtime_version="ai-edge-litert 2.3.0"
    )


@pytest.mark.parametrize(
    "runtime",
    ["", "2.3", "ai-edge-litert 2.3.0", "ai-edge-litert 1.99.0", "tflite-runtime 2.14.0, ai-edge-litert 2.1.0"],
)
def test_a_runtime_that_is_new_enough_or_one_of_the_alternatives_will_do(runtime: str) -> None:
    assert unmet(["x86-64", "aarch64"], "0.1", runtime) is None


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [
        ("ai-edge-litert 2.10.0", "needs runtime ai-edge-litert 2.10.0, this device has ai-edge-litert 2.3.0"),
        ("tflite-runtime 2.1.0", "needs runtime tflite-runtime 2.1.0"),
        ("2.3.1", "needs runtime 2.3.1"),
        ("ai-edge-litert new", "version 'new' is not numbers with dots"),
    ],
)
def test_a_runtime_that_is_older_or_another_is_named(runtime: str, reason: str) -> None:
    assert reason in (unmet(runtime=runtime) or "")


def test_no_runtime_meets_nothing() -> None:
    found = targets.unmet([], "", "1.0", hardware_class="a", agent_version="1", runtime_version="")
    assert found == "the bundle needs runtime 1.0, this device has none"


def test_versions_that_devices_would_not_understand_are_said_early() -> None:
    targets.check_versions("0.1.0", "ai-edge-litert 2.3.0, tflite-runtime 2.14.0")
    for agent, runtime in [("soon", ""), ("", "litert"), ("", "a 1.0, b x")]:
        with pytest.raises(BundleError, match="not numbers"):
            targets.check_versions(agent, runtime)


def test_the_signer_states_what_the_manifest_says() -> None:
    from contract import bundle

    manifest = bundle.unpack(agent_bundles.make(version=3, min_runtime_version="2.0")).manifest
    stated = targets.custom(manifest, blocks="00")
    assert (stated.model, stated.version, stated.min_runtime_version, stated.blocks) == ("thirds", 3, "2.0", "00")


def test_reading_it_needs_no_numpy() -> None:
    code = "import sys, contract.targets; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
