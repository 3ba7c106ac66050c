"""The train, compress and evaluate jobs over the real registry: what is registered, and what the bundle can do."""

import dataclasses
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

from cloud.training import job as train_job
from compression import evaluation_job
from compression import job as compress_job
from compression.errors import RecipeError
from compression.report.content import Content
from contract import bundle, tensors
from coordinator.registry.overrides import Statement, sign
from coordinator.signing.repository import ONLINE_ROLES, PEOPLE, Holders, first_root
from edge_agent import training
from edge_agent.runtime import Runtime
from fieldfare.digits import camera, task
from tests.fakes.registry_client import RegistryClient, context

pytestmark = pytest.mark.slow

TASK = "fieldfare.digits"


@dataclasses.dataclass
class Made:
    client: RegistryClient
    folder: Path
    log: list[tuple[float, str]]
    result: dict[str, Any]

    def run(self, job: Any, id: str, spec: dict[str, Any], *, resumed: bool = False) -> dict[str, Any]:  # noqa: A002
        given = context(self.client, self.folder, id, spec, self.log)
        return job.run(dataclasses.replace(given, resumed=resumed))

    def bundle(self, sha256: str) -> bundle.Bundle:
        return bundle.unpack(self.client.get_blob(sha256))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("registry")
    client = RegistryClient(folder)
    made = Made(client, folder, [], {})
    spec = {"task": TASK, "model": "digits", "epochs": 12, "options": {"devices": 4}}
    assert made.run(train_job, "train-1", spec) == {"model": "digits", "version": 1}
    assert made.run(train_job, "train-1", spec) == {"model": "digits", "version": 1}
    stages = [{"stage": "prune", "epochs": 4}, {"stage": "cluster", "epochs": 1}, {"stage": "int8"}]
    recipes = ["int8", {"name": "pruned-clustered-int8", "stages": stages}]
    spec = {"model": "digits", "version": 1, "recipes": recipes, "gates": {"max_drop": 0.05}}
    made.result = made.run(compress_job, "compress-1", spec)
    yield made
    client.close()


def test_the_version_says_what_it_was_made_from_and_how_good_it_is(made: Made) -> None:
    version = made.client.get_version("digits", 1)
    assert version.snapshot_sha256 == made.client.snapshots()[0].sha256
    assert version.metrics["test"]["accuracy"] > 0.9
    assert set(version.metrics["test"]["devices"]) == {"meter-1", "meter-2", "meter-3", "meter-4"}
    assert list(tensors.load(made.client.get_blob(version.weights_sha256)))[:2] == [
        "digits/edges/kernel",
        "digits/edges/bias",
    ]


def test_progress_never_goes_back_within_a_job(made: Made) -> None:
    starts = [index for index, (fraction, _) in enumerate(made.log) if fraction == 0.02]
    for begin, end in zip(starts, [*starts[1:], len(made.log)], strict=True):
        fractions = [fraction for fraction, _ in made.log[begin:end]]
        assert fractions == sorted(fractions)
        assert fractions[-1] <= 1


def test_every_variant_is_measured_and_the_smallest_that_passes_is_chosen(made: Made) -> None:
    variants = {variant.name: variant for variant in made.client.get_version("digits", 1).variants}
    assert set(variants) == {"float", "int8", "pruned-clustered-int8"}
    sizes = {name: variant.report["zstd_bytes"] for name, variant in variants.items()}
    assert sizes["pruned-clustered-int8"] < 0.7 * sizes["int8"] < 0.7 * 0.5 * sizes["float"]
    passed = [name for name, variant in variants.items() if variant.gate.passed]
    assert made.result["chosen"] == min(passed, key=sizes.__getitem__)
    assert all(0 < variant.report["p50_us"] <= variant.report["p95_us"] for variant in variants.values())


def test_the_golden_vectors_hold_in_the_runtime(made: Made) -> None:
    content = made.bundle(made.result["bundle"]["sha256"])
    logits = Runtime(content.files["inference"]).logits(content.transform.apply(content.golden["x"]))
    assert np.abs(logits - content.golden["logits"]).max() <= content.manifest.golden_tolerance
    assert len(logits) == 16


def test_no_test_image_leaves_for_the_devices(made: Made) -> None:
    golden = made.bundle(made.result["bundle"]["sha256"]).golden["x"]
    data = task.load_data(4)

    def shown(part: str) -> set[bytes]:
        return {image.tobytes() for image in data["x"][data["part"] == part]}

    assert {image.tobytes() for image in golden} <= shown("validation")
    assert not {image.tobytes() for image in golden} & shown("test")


def test_the_reference_profile_counts_the_validation_samples(made: Made) -> None:
    content = made.bundle(made.result["bundle"]["sha256"])
    assert content.profile.counts.samples == 161
    assert min(len(feature.edges) for feature in content.profile.spec.features) >= 5


def test_the_signer_is_asked_for_the_bundle_once(made: Made) -> None:
    assert made.client.requested.count(made.result["bundle"]["sha256"]) == 1


def test_federated_rounds_on_the_devices_recover_from_drift(made: Made) -> None:
    content = made.bundle(made.result["bundle"]["sha256"])
    assert content.manifest.training is not None
    runtime = training.TrainingRuntime(content.files["training"], content.manifest.training)
    start = weights = tensors.load(content.files["weights"])
    local = list(task.device_samples(4).values())[:3]
    for number in range(4):
        results = [
            training.train(
                runtime,
                weights,
                content.transform.apply(camera.drift(x, device)),
                y,
                epochs=5,
                learning_rate=0.005,
                momentum=0.9,
                seed=10 * number + device,
            )
            for device, (x, y) in enumerate(local)
        ]
        total = sum(result.examples for result in results)
        weights = {
            name: np.sum([r.weights[name] * np.float32(r.examples / total) for r in results], axis=0)
            for name in weights
        }
    data = task.load_data(4)
    test = data["part"] == "test"
    drifted = content.transform.apply(camera.drift(data["x"][test], 99))

    def accuracy(arrays: tensors.Arrays) -> float:
        return float((training.infer(runtime, arrays, drifted).argmax(axis=1) == data["y"][test]).mean())

    assert accuracy(start) < 0.75
    assert accuracy(weights) > accuracy(start) + 0.1


def test_a_federated_version_takes_data_and_transform_from_its_ancestor(made: Made) -> None:
    base = made.client.get_version("digits", 1)
    reference = made.client.put_blob(made.bundle(made.result["bundle"]["sha256"]).files["profile"]).sha256
    child = made.client.create_version(
        "digits",
        task=TASK,
        weights_sha256=base.weights_sha256,
        metrics={},
        parents=[1],
        run="run-1",
        reference_sha256=reference,
        details={"federated": {"bundle": made.result["bundle"]["sha256"]}},
    )
    spec = {"model": "digits", "version": child.version, "recipes": ["int8"]}
    result = made.run(compress_job, "compress-2", spec)
    assert (result["variants"], result["chosen"]) == (["float", "int8"], "int8")
    manifest = made.bundle(result["bundle"]["sha256"]).manifest
    assert manifest.files["profile"].sha256 == reference
    assert manifest.temperature == made.bundle(made.result["bundle"]["sha256"]).manifest.temperature
    again = made.run(compress_job, "compress-2", spec, resumed=True)
    assert again["bundle"]["sha256"] == result["bundle"]["sha256"]


def test_the_evaluate_job_counts_as_devices_do(made: Made) -> None:
    data = task.load_data(4)
    test = data["part"] == "test"
    samples = made.client.put_blob(tensors.dump({"x": data["x"][test], "y": data["y"][test]})).sha256
    spec = {"bundle_sha256": made.result["bundle"]["sha256"], "samples_sha256": samples}
    found = made.run(evaluation_job, "evaluate-1", spec)
    variants = {variant.name: variant for variant in made.client.get_version("digits", 1).variants}
    assert found["samples"] == 360
    assert found["accuracy"] == pytest.approx(variants[made.result["chosen"]].report["accuracy"])
    assert abs(found["estimated_accuracy"] - found["accuracy"]) < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipes": ["magic"]}, "no recipe 'magic'"),
        ({"gates": {"max_drop": 2.0}}, "max_drop"),
        ({"sparsity": 0.5}, "unknown field"),
        ({"version": "one"}, "version"),
    ],
)
def test_a_wrong_specification_is_refused(made: Made, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        made.run(compress_job, "compress-x", {"model": "digits", "version": 1, **change})


def test_where_no_variant_may_ship_all_are_registered_and_there_is_a_report_and_no_bundle(made: Made) -> None:
    spec = {"model": "digits", "version": 1, "recipes": ["int8"], "gates": {"max_bytes": 10}}
    before = list(made.client.requested)
    result = made.run(compress_job, "compress-2", spec)
    assert (result["chosen"], result["bundle"]) == (None, None)
    assert "no variant may ship: float has" in result["refused"]
    assert made.client.requested == before
    content = msgspec.json.decode(made.client.get_blob(result["report"]["content"]), type=Content)
    assert {entry.name: entry.passed for entry in content.variants} == {"float": False, "int8": False}
    assert b"none" in made.client.get_blob(result["report"]["html"])


def test_a_job_cannot_ask_for_less_than_its_model(made: Made) -> None:
    made.client.registry.set_gates("digits", {"max_bytes": 10})
    try:
        spec = {"model": "digits", "version": 1, "recipes": ["int8"], "gates": {"max_drop": 1.0, "max_bytes": 10**9}}
        result = made.run(compress_job, "compress-lax", spec)
    finally:
        made.client.registry.set_gates("digits", {})
    assert (result["chosen"], result["bundle"]) == (None, None)
    assert "no variant may ship: float has" in result["refused"]


def test_an_attempt_that_was_killed_is_not_made_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"model": "digits", "version": 1, "recipes": ["int8"], "gates": {"max_drop": 0.05}}
    folder = made.folder / "killed"
    folder.mkdir()
    given = context(made.client, folder, "compress-3", spec, made.log)
    killed = dataclasses.replace(given, report=lambda _fraction, message: _die("exporting", message))
    with pytest.raises(InterruptedError):
        compress_job.run(killed)
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "variants").iterdir()}
    assert set(kept) == {"float.tflite", "float.json", "int8.tflite", "int8.json"}
    monkeypatch.setattr("compression.recipe.make", lambda *_args: pytest.fail("made again"))
    assert compress_job.run(dataclasses.replace(given, resumed=True))["chosen"] == "int8"
    (folder / "decision.json").unlink()
    (folder / "variants" / "int8.tflite").write_bytes(b"half")
    with pytest.raises(pytest.fail.Exception, match="made again"):
        compress_job.run(dataclasses.replace(given, resumed=True))


def _die(where: str, message: str) -> None:
    if message.startswith(where):
        raise InterruptedError


def test_the_report_is_kept_with_the_page_and_the_picture(made: Made) -> None:
    found = {kind: made.client.get_blob(digest) for kind, digest in made.result["report"].items()}
    assert set(found) == {"content", "html", "png"}
    assert found["png"].startswith(b"\x89PNG")
    page = found["html"].decode()
    assert "<script" not in page
    assert page.count("<svg") == 2
    assert "pruned-clustered-int8" in page


def test_a_variant_says_which_recipe_made_it_and_what_each_stage_did(made: Made) -> None:
    variant = next(v for v in made.client.get_version("digits", 1).variants if v.name == "pruned-clustered-int8")
    assert [stage["stage"] for stage in variant.report["recipe"]["stages"]] == ["prune", "cluster", "int8"]
    assert variant.report["records"][0]["notes"]["sparsity"] == pytest.approx(0.6, abs=0.01)


def test_what_fails_the_model_s_gates_ships_by_a_signed_word_for_the_artifact_that_is_made_again(made: Made) -> None:
    spec = {"model": "digits", "version": 1, "recipes": ["int8"]}
    client, holder = made.client, CryptoSigner.generate_ed25519()
    client.registry.set_gates("digits", {"max_bytes": 1000, "p95_us": {"nano": 500.0}})
    try:
        refused = made.run(compress_job, "compress-gated", spec)
        assert (refused["chosen"], refused["bundle"]) == (None, None)
        failed = next(each for each in client.get_version("digits", 1).variants if each.name == "float")
        assert "1,000 are allowed" in failed.gate.reasons[0]
        assert "nobody measured it on hardware class nano" in failed.gate.notes[0]
        client.root = first_root({role: Holders([holder.public_key]) for role in (*PEOPLE, *ONLINE_ROLES)}, time.time())
        statement = Statement(
            model="digits",
            version=1,
            variant="float",
            artifact_sha256=failed.tflite_sha256,
            reasons=failed.gate.reasons,
            reason="a field trial",
            by="alice",
            signed_at=time.time(),
            expires_at=time.time() + 3600,
        )
        client.registry.override("digits", 1, "float", sign(statement, holder))
        shipped = made.run(compress_job, "compress-overridden", spec)
        assert shipped["chosen"] == "float"
        assert made.bundle(shipped["bundle"]["sha256"]).manifest.variant == "float"
        client.registry.set_gates("digits", {"max_bytes": 1000, "min_worst_class": 1.0})
        again = made.run(compress_job, "compress-not-covered", spec)  # the word says nothing of the worst class
        assert (again["chosen"], again["bundle"]) == (None, None)
        assert "no variant may ship" in again["refused"]
    finally:
        client.registry.set_gates("digits", {})


def test_a_recipe_whose_name_a_bundle_holds_with_another_artifact_is_refused_as_soon_as_it_is_made(made: Made) -> None:
    other = {"name": "pruned-clustered-int8", "stages": [{"stage": "int8", "samples": 10}]}
    with pytest.raises(
        RecipeError, match="recipe pruned-clustered-int8: digits:1 has a variant of that name with another"
    ):
        made.run(compress_job, "compress-clash", {"model": "digits", "version": 1, "recipes": [other]})


def test_what_a_search_kept_is_named_by_its_artifact_so_that_the_next_search_is_in_nobodys_way(made: Made) -> None:
    search = {"budget": "drop<=60pt", "trials": 2, "minutes": 2.0}
    spec = {"model": "digits", "version": 1, "recipes": [], "search": search, "gates": {"max_drop": 0.9}}
    result = made.run(compress_job, "compress-search", spec)
    variants = {each.name: each for each in made.client.get_version("digits", 1).variants}
    found = [name for name in result["variants"] if name != "float"]
    assert found
    for name in found:
        assert re.fullmatch(r"search-\d+-[0-9a-f]{8}", name)
        assert variants[name].tflite_sha256.startswith(name.rpartition("-")[2])
        assert variants[name].report["recipe"]["name"] == name
    content = msgspec.json.decode(made.client.get_blob(result["report"]["content"]), type=Content)
    assert content.search is not None
    assert {name.rpartition("-")[0] for name in found} >= set(content.search.front)
