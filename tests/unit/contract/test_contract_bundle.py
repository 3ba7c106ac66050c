import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import bundle, codec, profile, tensors
from contract.errors import BundleError, ContractError, TooLargeError
from contract.training import TensorSpec, TrainingSpec
from contract.transform import Mean, TransformSpec

TRANSFORM = TransformSpec(input_shape=[2], steps=[], features=[Mean("level")])
PROFILE = profile.ProfileSpec(features=[profile.FeatureBins("level", [0.5])], classes=2, confidence_edges=[0.5])
FILES = {
    "inference": b"not parsed here",
    "transform": TRANSFORM.encode(),
    "profile": codec.encode_json(profile.Reference(spec=PROFILE, counts=profile.zero(PROFILE))),
    "golden": tensors.dump({"x": np.zeros((1, 2), np.float32), "logits": np.zeros((1, 2), np.float32)}),
}
MANIFEST = bundle.Manifest(
    model="m", version=1, variant="float", labels=["no", "yes"], temperature=1.0, golden_tolerance=0.1, training=None,
    hardware_classes=[], min_agent_version="0.1.0", created_at=1_700_000_000,
)  # fmt: skip
TRAINING = TrainingSpec(batch=4, weights=[TensorSpec("w", [2, 2])], state=[])


def replace(**change: object) -> bundle.Manifest:
    import msgspec

    return msgspec.structs.replace(MANIFEST, **change)


def test_a_bundle_comes_back_as_it_was_packed() -> None:
    files = {**FILES, "training": b"t", "weights": tensors.dump({"w": np.ones((2, 2), np.float32)})}
    loaded = bundle.unpack(bundle.pack(replace(training=TRAINING), files))

    assert loaded.files == files
    assert loaded.manifest.training == TRAINING
    assert loaded.manifest.labels == ["no", "yes"]
    assert loaded.transform.spec == TRANSFORM


def test_the_same_parts_give_the_same_bytes() -> None:
    assert bundle.pack(MANIFEST, FILES) == bundle.pack(MANIFEST, dict(reversed(FILES.items())))


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_bundle_is_refused_or_reads_the_same(data: st.DataObject) -> None:
    packed = bytearray(bundle.pack(MANIFEST, FILES))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        loaded = bundle.unpack(bytes(packed))
    except ContractError:
        return
    assert loaded.files == FILES  # the flip hit a zip field that carries nothing, such as a time stamp


def test_a_truncated_bundle_is_refused() -> None:
    packed = bundle.pack(MANIFEST, FILES)
    for length in range(0, len(packed), 7):
        with pytest.raises(BundleError):
            bundle.unpack(packed[:length])


def test_a_bundle_that_unpacks_to_too_much_is_refused() -> None:
    files = {**FILES, "inference": bytes(10**6)}
    with pytest.raises(TooLargeError):
        bundle.unpack(bundle.pack(MANIFEST, files), limit=10**5)
    packed = deflated(bundle.pack(MANIFEST, files))
    assert len(packed) < 10**4
    with pytest.raises(TooLargeError):
        bundle.unpack(packed, limit=10**5)


def test_a_bundle_that_an_older_program_deflated_is_read() -> None:
    packed = bundle.pack(MANIFEST, FILES)
    assert deflated(packed) != packed
    assert bundle.unpack(deflated(packed)).files == FILES


def deflated(packed: bytes) -> bytes:
    """The same files, as bundles were packed before they were stored."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def test_a_file_that_the_manifest_does_not_name_is_refused() -> None:
    buffer = io.BytesIO(bundle.pack(MANIFEST, FILES))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("../evil", b"x")
    with pytest.raises(BundleError, match="are not those of the manifest"):
        bundle.unpack(buffer.getvalue())


@pytest.mark.parametrize(
    ("manifest", "files", "message"),
    [
        (MANIFEST, {k: v for k, v in FILES.items() if k != "golden"}, "need"),
        (MANIFEST, {**FILES, "surprise": b""}, "may have"),
        (replace(labels=["only"]), FILES, "labels"),
        (replace(training=TRAINING), FILES, "come together"),
        (MANIFEST, {**FILES, "golden": tensors.dump({"x": np.zeros((0, 2)), "logits": np.zeros((0, 2))})}, "empty"),
        (MANIFEST, {**FILES, "golden": tensors.dump({"x": np.zeros((1, 2))})}, "need `x` and `logits`"),
        (MANIFEST, {**FILES, "transform": TransformSpec(input_shape=[2], steps=[], features=[]).encode()}, "counts"),
        (MANIFEST, {**FILES, "profile": b"{}"}, "missing required field"),
    ],
)
def test_parts_that_disagree_are_refused_when_packed(manifest: bundle.Manifest, files: dict, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        bundle.pack(manifest, files)


def test_the_target_path_names_model_version_variant_and_digest() -> None:
    assert bundle.target_path("digits", 2, "int8", "ab" * 32) == "bundles/digits/2/int8-abababababab.zip"


@pytest.mark.parametrize("name", ["x", "logits"])
def test_golden_vectors_that_are_one_number_are_refused(name: str) -> None:
    golden = {"x": np.zeros((1, 2), np.float32), "logits": np.zeros((1, 2), np.float32), name: np.float32(1)}
    with pytest.raises(BundleError, match="golden vectors need"):
        bundle.pack(MANIFEST, {**FILES, "golden": tensors.dump(golden)})
