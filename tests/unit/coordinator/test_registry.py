from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract import bundle, codec, profile, tensors
from contract.errors import BundleError, ProfileError, TensorError
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.records import Gate
from coordinator.registry import bundling
from tests.fakes.registry_site import SPEC, Site


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database)
    yield made
    made.storage.engine.dispose()


def test_versions_are_numbered_from_one_in_order(site: Site) -> None:
    assert [site.version(value).version for value in (1.0, 2.0, 3.0)] == [1, 2, 3]
    assert [(model.name, model.versions) for model in site.registry.models()] == [("m", [1, 2, 3])]


def test_registering_the_same_again_gives_the_same_version(site: Site) -> None:
    first = site.version(1.0)
    site.version(2.0)
    assert site.version(1.0) == first


def test_a_job_makes_one_version_even_if_it_trains_twice(site: Site) -> None:
    first = site.version(1.0, job="j1")
    assert site.version(2.0, job="j1") == first
    assert site.version(2.0, job="j2").version == 2


def test_a_version_tells_what_it_was_made_from(site: Site) -> None:
    entry = {"sha256": site.put(b"pixels"), "rows": 3}
    snapshot = site.registry.create_snapshot(task="t", manifest={"files": {"train": entry}})
    base = site.version(1.0, snapshot_sha256=snapshot.sha256, details={"transform": "x"})
    made = site.version(2.0, parents=[1], run="r1", metrics={"accuracy": float("nan")})
    assert base.snapshot_sha256 == snapshot.sha256
    assert base.details == {"transform": "x"}
    assert (made.parents, made.run, made.version) == ([1], "r1", 2)
    assert made.metrics == {"accuracy": None}


def test_the_same_manifest_is_the_same_snapshot(site: Site) -> None:
    manifest = {"files": {"a": {"sha256": site.put(b"a")}}, "seed": 1}
    first = site.registry.create_snapshot(task="t", manifest=manifest)
    assert site.registry.create_snapshot(task="t", manifest=dict(reversed(manifest.items()))) == first
    assert site.registry.snapshots() == [first]


@pytest.mark.parametrize("manifest", [{}, {"files": {}}, {"files": {"a": {}}}, {"files": {"a": {"sha256": "0" * 64}}}])
def test_a_snapshot_without_its_files_is_refused(site: Site, manifest: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        site.registry.create_snapshot(task="t", manifest=manifest)


def test_weights_must_be_stored_and_be_weights(site: Site) -> None:
    with pytest.raises(InvalidError, match="no blob"):
        site.version(weights_sha256="0" * 64)
    with pytest.raises(TensorError):
        site.version(weights_sha256=site.put(b"not safetensors"))
    assert site.registry.models() == []


def test_an_artifact_that_was_brought_in_stands_in_place_of_weights(site: Site) -> None:
    fields: dict[str, Any] = {"task": "t", "metrics": {}}
    first, other = (site.put(content) for content in (b"a tflite", b"another"))
    made = site.registry.create_version("m", artifact_sha256=first, **fields)
    assert (made.weights_sha256, made.artifact_sha256) == ("", first)
    assert site.registry.create_version("m", artifact_sha256=first, **fields).version == made.version
    assert site.registry.create_version("m", artifact_sha256=other, **fields).version == made.version + 1
    with pytest.raises(InvalidError, match=r"the artifact: no blob"):
        site.registry.create_version("m", artifact_sha256="0" * 64, **fields)
    for both in ({}, {"artifact_sha256": first, "weights_sha256": site.weights()}):
        with pytest.raises(InvalidError, match="either weights or an artifact"):
            site.registry.create_version("m", **both, **fields)


def test_a_reference_profile_must_add_up(site: Site) -> None:
    counts = profile.Counts(
        samples=3, features=[[1, 1]], missing=[0], predictions=[3, 0], confidence=[0, 3], confidence_sum=0
    )
    with pytest.raises(ProfileError):
        site.version(reference_sha256=site.put(codec.encode_json(profile.Reference(spec=SPEC, counts=counts))))


def test_parents_and_snapshots_must_exist(site: Site) -> None:
    with pytest.raises(InvalidError, match="parent"):
        site.version(parents=[1])
    with pytest.raises(InvalidError, match="snapshot"):
        site.version(snapshot_sha256="0" * 64)


@pytest.mark.parametrize("name", ["", "Digits", "a/b", "..", "a..b", "x" * 64, "-a"])
def test_a_name_that_would_not_be_safe_in_a_path_is_refused(site: Site, name: str) -> None:
    with pytest.raises(InvalidError):
        site.registry.create_version(name, task="t", weights_sha256=site.weights(), metrics={})


def test_what_is_not_there_is_named(site: Site) -> None:
    with pytest.raises(NotFoundError, match="version 1 of model 'm'"):
        site.registry.version("m", 1)
    site.version()
    with pytest.raises(NotFoundError, match="int8"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())


def test_a_bundle_is_built_stored_and_sent_to_the_signer(site: Site) -> None:
    site.version()
    site.variant()
    made = site.registry.create_bundle("m", 1, "int8", site.recipe())

    content = site.storage.blobs.get(made.sha256)
    manifest = bundle.unpack(content).manifest
    assert (manifest.model, manifest.version, manifest.variant) == ("m", 1, "int8")
    assert made.target == bundle.target_path("m", 1, "int8", made.sha256)
    assert (made.size, made.signed_at) == (len(content), None)
    assert [request["sha256"] for request in site.asked] == [made.sha256]
    assert site.asked[0]["custom"]["hardware_classes"] == ["x86-64"]
    assert site.registry.version("m", 1).bundles == [made]


def test_building_a_bundle_again_changes_nothing(site: Site) -> None:
    site.version()
    site.variant()
    first = site.registry.create_bundle("m", 1, "int8", site.recipe())
    assert site.registry.create_bundle("m", 1, "int8", site.recipe()) == first
    assert len(site.asked) == 1
    assert site.registry.bundles() == [first]


def test_a_variant_that_failed_its_gate_ships_in_no_bundle(site: Site) -> None:
    site.version()
    site.variant(gate=Gate(passed=False, reasons=["accuracy fell by 0.2"]))
    with pytest.raises(ConflictError, match=r"accuracy fell by 0\.2"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())


def test_a_bundle_holds_the_registered_artifact_and_no_other(site: Site) -> None:
    site.version()
    site.variant(b"measured")
    with pytest.raises(InvalidError, match="inference part"):
        site.registry.create_bundle("m", 1, "int8", site.recipe(inference=b"another"))


def test_a_version_with_a_reference_of_its_own_ships_with_it(site: Site) -> None:
    spec = profile.ProfileSpec(features=[profile.FeatureBins("level", [0.25])], classes=2, confidence_edges=[0.5])
    own = codec.encode_json(profile.Reference(spec=spec, counts=profile.zero(spec)))
    site.version(reference_sha256=site.put(own))
    site.variant()
    with pytest.raises(InvalidError, match="reference profile"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())
    assert site.registry.create_bundle("m", 1, "int8", site.recipe(profile=own)).version == 1


def test_parts_that_do_not_agree_make_no_bundle(site: Site) -> None:
    site.version()
    site.variant()
    with pytest.raises(BundleError):
        site.registry.create_bundle("m", 1, "int8", site.recipe(golden=tensors.dump({"x": np.zeros((1, 2))})))
    assert site.registry.bundles() == []
    assert site.asked == []


def test_a_variant_may_be_measured_again_and_its_artifact_stays_once_a_bundle_holds_it(site: Site) -> None:
    site.version()
    site.variant(b"first try")
    second = site.variant(b"tflite")
    assert site.registry.version("m", 1).variants == [second]
    site.registry.create_bundle("m", 1, "int8", site.recipe())
    again = site.variant(b"tflite", gate=Gate(passed=False, reasons=["is slow there"]))
    assert (again.tflite_sha256, again.gate.passed) == (second.tflite_sha256, False)
    assert site.registry.version("m", 1).variants == [again]  # a bundle is refused from now on
    with pytest.raises(ConflictError, match="is slow there"):
        site.registry.create_bundle("m", 1, "int8", site.recipe())
    with pytest.raises(ConflictError):
        site.variant(b"third try")


def test_a_variant_that_changes_while_its_bundle_is_built_is_not_what_the_bundle_holds(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.version()
    site.variant()
    recipe = site.recipe()
    build = bundling.build

    def slow(*parts: Any) -> Any:
        site.variant(b"another")
        return build(*parts)

    monkeypatch.setattr(bundling, "build", slow)
    with pytest.raises(InvalidError, match="must be its artifact"):
        site.registry.create_bundle("m", 1, "int8", recipe)
    assert (site.registry.bundles(), site.asked) == ([], [])
