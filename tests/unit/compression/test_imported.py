"""Artifacts from elsewhere: a version of their own, measured, bundled for inference, or refused with the reason."""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from typer.testing import CliRunner

from cloud.learning.backend import use_tensorflow
from cloud.learning.task import Task, load_task
from compression import evaluation_job, imported, imported_cli, source
from compression.cli import app
from compression.errors import ArtifactError, CompressionError, RecipeError
from contract import bundle, tensors
from coordinator.client import Client, Gates
from coordinator.records import Measurement
from coordinator.registry.overrides import Statement, sign
from coordinator.signing.repository import ONLINE_ROLES, PEOPLE, Holders, first_root
from tests.fakes import digits_bench
from tests.fakes.measurements import MEASURED
from tests.fakes.real_models import read
from tests.fakes.registry_client import RegistryClient

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifact() -> bytes:
    """A trained digits model as a foreign tool would leave it: int8, float input and output."""
    from compression import convert

    use_tensorflow()
    bench = digits_bench.trained()
    return convert.to_int8(digits_bench.keras_model(bench), bench.train.spread(100), io="float")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = RegistryClient(tmp_path)
    yield cast(Client, made)
    made.close()


@pytest.fixture(scope="module")
def task() -> Task:
    return load_task("digits")


def test_an_artifact_becomes_a_version_with_a_bundle_that_answers(client: Client, artifact: bytes, task: Task) -> None:
    made = imported.register(client, artifact, "digits", task)
    version = client.get_version("digits", made.version)
    assert version.weights_sha256 == ""
    assert version.artifact_sha256 == hashlib.sha256(artifact).hexdigest()
    assert version.metrics["test"]["accuracy"] > 0.9
    [variant] = version.variants
    assert variant.name == "imported"
    assert variant.gate.passed
    assert variant.report["p50_us"] > 0
    assert made.bundle is not None
    packed = bundle.unpack(client.get_blob(made.bundle.sha256))
    assert packed.files["inference"] == artifact
    assert packed.manifest.training is None
    assert set(packed.files) >= {"inference", "transform", "golden", "profile"}
    data = task.load_data()
    test = data["part"] == "test"
    found = evaluation_job.evaluate(packed, data["x"][test], data["y"][test])
    assert found["accuracy"] == pytest.approx(made.report.accuracy)


def test_the_same_file_is_the_same_version_and_another_is_another(client: Client, artifact: bytes, task: Task) -> None:
    first, again = (imported.register(client, artifact, "digits", task) for _ in range(2))
    assert (again.version, again.bundle) == (first.version, first.bundle)
    other = imported.register(client, artifact + bytes(16), "digits", task)
    assert other.version == first.version + 1


def test_an_artifact_is_not_compressed_again(client: Client, artifact: bytes, task: Task) -> None:
    imported.register(client, artifact, "digits", task)
    with pytest.raises(RecipeError, match="digits:1 was brought in as an artifact and has no weights"):
        source.load(client, "digits", 1)


def test_gates_that_it_fails_leave_no_bundle(client: Client, artifact: bytes, task: Task) -> None:
    made = imported.register(client, artifact, "digits", task, gates=Gates(max_bytes=1000))
    assert made.bundle is None
    assert "bytes, 1,000 are allowed" in made.reasons[0]
    assert not client.get_version("digits", made.version).variants[0].gate.passed


def changed(task: Task, **fields: Any) -> Task:
    return dataclasses.replace(task, **fields)


def test_what_does_not_fit_the_task_is_refused_before_anything_is_registered(
    client: Client, artifact: bytes, task: Task
) -> None:
    data = task.load_data()
    wide = changed(task, input_shape=(8, 4, 1), _load_data=lambda **_options: {**data, "x": data["x"][:, :, :4]})
    more = changed(task, labels=(*task.labels, "none"))
    cases = [
        (artifact, more, "answers with 10 values, task 'digits' has 11 labels"),
        (artifact, wide, r"takes samples of shape \[8, 8, 1\], task 'digits' gives \[8, 4, 1\]"),
        (artifact[:5000], task, r"not a .tflite that can be read|the runtime refuses"),
        (b"not at all", task, r"not a .tflite"),
    ]
    for content, given, message in cases:
        with pytest.raises(CompressionError, match=message) as caught:
            imported.register(client, content, "digits", given)
        assert "\n" not in str(caught.value)
    assert cast(Any, client).registry.models() == []


def test_labelled_samples_do_in_place_of_a_task(client: Client, artifact: bytes, task: Task, tmp_path: Path) -> None:
    bench = digits_bench.untrained()
    path = tmp_path / "mine.safetensors"
    path.write_bytes(tensors.dump({"x": bench.train.x, "y": bench.train.y}))
    given = imported.task_of_samples(path, task.labels)
    made = imported.register(client, artifact, "mine", given)
    assert made.report.accuracy is not None
    assert made.report.accuracy > 0.9
    assert made.bundle is not None
    assert bundle.unpack(client.get_blob(made.bundle.sha256)).manifest.labels == list(task.labels)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((5, 2), np.float32)}, "needs tensors `x`"),
        ({"x": np.zeros((5, 2), np.float32), "y": np.zeros(4, np.int64)}, "of one length"),
        ({"x": np.zeros((2, 2), np.float32), "y": np.zeros(2, np.int64)}, "at least 3 samples"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = tmp_path / "s.safetensors"
    path.write_bytes(tensors.dump(arrays))
    with pytest.raises(RecipeError, match=message):
        imported.task_of_samples(path, ("a", "b"))
    with pytest.raises(RecipeError, match="cannot be read as safetensors"):
        imported.task_of_samples(tmp_path / "none", ("a", "b"))


def test_the_reason_of_the_runtime_is_told(client: Client, task: Task) -> None:
    with pytest.raises(ArtifactError, match=r"refuses the artifact: .*quantized_dimension"):
        imported.register(client, read("tflite_micro/person_detect.tflite"), "person", task)


def test_the_command_imports_and_says_what_may_not_ship(
    client: Client, artifact: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imported_cli, "connect", lambda _state: contextlib.nullcontext(client))
    path, strict = tmp_path / "digits.tflite", tmp_path / "gates.toml"
    path.write_bytes(artifact)
    strict.write_text("[gates]\nmax_bytes = 1000\n")
    given = ["import", str(path), "--model", "lamps", "--task", "digits"]
    made = CliRunner().invoke(app, [*given, "--json"])
    assert made.exit_code == 0
    assert json.loads(made.stdout)["bundle"]["model"] == "lamps"
    assert "lamps:1 imported: " in CliRunner().invoke(app, given).stdout
    refused = CliRunner().invoke(app, [*given[:-3], "other", *given[-2:], "--gates", str(strict)])
    assert refused.exit_code == 1
    assert "other:1 may not ship: has " in refused.output
    both = CliRunner().invoke(app, [*given, "--samples", "x"])
    assert isinstance(both.exception, RecipeError)
    assert "give either --task, or --samples with --labels" in str(both.exception)


def test_a_device_on_which_it_is_too_slow_counts_and_a_signed_word_lets_it_pass(
    tmp_path: Path, artifact: bytes, task: Task
) -> None:
    real = RegistryClient(tmp_path)
    client, holder = cast(Client, real), CryptoSigner.generate_ed25519()
    digest = hashlib.sha256(artifact).hexdigest()
    real.measured = [
        Measurement(
            id="1",
            hardware_class="nano",
            artifact_sha256=digest,
            bundle_sha256="b" * 64,
            device="one",
            measured=MEASURED,
            measured_at=1.0,
        )
    ]
    gates = Gates(p95_us={"nano": 1.0, "pi": 5.0})
    refused = imported.register(client, artifact, "digits", task, gates=gates)
    assert refused.bundle is None
    assert refused.reasons == ["takes 12 us (p95) on nano, 1 are allowed"]
    [variant] = client.get_version("digits", refused.version).variants
    assert "nobody measured it on hardware class pi" in variant.gate.notes[0]
    real.root = first_root({role: Holders([holder.public_key]) for role in (*PEOPLE, *ONLINE_ROLES)}, time.time())
    statement = Statement(
        model="digits",
        version=refused.version,
        variant=variant.name,
        artifact_sha256=digest,
        reasons=variant.gate.reasons,
        reason="slow is fine there",
        by="alice",
        signed_at=time.time(),
        expires_at=time.time() + 3600,
    )
    real.registry.override("digits", refused.version, variant.name, sign(statement, holder))
    again = imported.register(client, artifact, "digits", task, gates=gates)
    assert (again.version, again.bundle is not None) == (refused.version, True)
    real.close()
