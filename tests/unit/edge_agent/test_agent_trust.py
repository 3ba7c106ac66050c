"""The child that asks python-tuf: what it vouches for, and everything it must not."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edge_agent import trust
from edge_agent.errors import ConfigError, TrustError, UnavailableError
from tests.fakes.agent_repository import Repository

PATH, DATA = "bundles/thirds/1/float-0123456789ab.zip", b"content"


@pytest.fixture
def repository() -> Repository:
    made = Repository()
    made.add(PATH, DATA)
    return made


def _lookup(repository: Repository, folder: Path, path: str = PATH) -> trust.Target:
    return trust.lookup(repository.bootstrap, folder / "metadata", path, repository.files.get)


def test_a_signed_target_gives_its_size_and_digest_and_the_state_is_kept(
    repository: Repository, tmp_path: Path
) -> None:
    target = _lookup(repository, tmp_path)
    assert target.size == len(DATA)
    assert len(target.sha256) == 64
    repository.add("bundles/thirds/2/float-0123456789ab.zip", b"newer")
    assert _lookup(repository, tmp_path, "bundles/thirds/2/float-0123456789ab.zip").size == 5
    assert (tmp_path / "metadata" / "timestamp.json").exists()


def test_an_older_state_is_not_passed_off_as_new(repository: Repository, tmp_path: Path) -> None:
    old = dict(repository.files)
    repository.add("bundles/thirds/2/float-0123456789ab.zip", b"newer")
    _lookup(repository, tmp_path)
    repository.files = old
    with pytest.raises(TrustError, match="BadVersionNumberError"):
        _lookup(repository, tmp_path)


def test_metadata_that_another_key_signed_is_refused(repository: Repository, tmp_path: Path) -> None:
    repository.publish(bundles_key="snapshot")
    with pytest.raises(TrustError, match="UnsignedMetadataError"):
        _lookup(repository, tmp_path)


def test_a_flipped_byte_in_the_metadata_is_refused(repository: Repository, tmp_path: Path) -> None:
    name = next(name for name in repository.files if name.endswith("2.bundles.json"))
    content = bytearray(repository.files[name])
    content[content.index(b"0123456789ab")] ^= 1
    repository.files[name] = bytes(content)
    with pytest.raises(TrustError):
        _lookup(repository, tmp_path)


def test_expired_metadata_is_refused_and_a_fresh_timestamp_mends_it(repository: Repository, tmp_path: Path) -> None:
    repository.timestamp.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(seconds=5)
    repository.publish()
    with pytest.raises(TrustError, match=r"Expired.*this device's clock says \d{4}-"):
        _lookup(repository, tmp_path)
    repository.timestamp.expires = repository.expires
    repository.timestamp.version += 1
    repository.publish()
    assert _lookup(repository, tmp_path).size == len(DATA)


def test_a_target_that_nobody_signed_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="names no target"):
        _lookup(repository, tmp_path, "bundles/thirds/9/float-0123456789ab.zip")


def test_a_root_that_is_no_root_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(TrustError):
        trust.lookup(b"{}", tmp_path / "metadata", PATH, repository.files.get)


def test_a_repository_that_is_not_there_yet_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    del repository.files["timestamp.json"]
    with pytest.raises(UnavailableError, match=r"timestamp\.json"):
        _lookup(repository, tmp_path)


def test_silence_ends_the_child(repository: Repository, tmp_path: Path) -> None:
    def silent(name: str) -> bytes:
        raise UnavailableError(f"no answer to {name}")

    with pytest.raises(UnavailableError, match=r"no answer to 2\.root\.json"):
        trust.lookup(repository.bootstrap, tmp_path / "metadata", PATH, silent)


def test_a_key_that_cannot_sign_gets_a_sentence(tmp_path: Path) -> None:
    from edge_agent import signing

    (tmp_path / "key").write_text("no key")
    with pytest.raises(ConfigError, match="enrol this device again"):
        signing.sign(tmp_path / "key", b"payload")


def test_what_a_bundle_needs_comes_with_its_target(repository: Repository, tmp_path: Path) -> None:
    path = "bundles/thirds/2/float-0123456789ab.zip"
    needs = {"hardware_classes": ["tpu"], "min_agent_version": "0.2.0", "min_runtime_version": "ai-edge-litert 2.3.0"}
    repository.add(path, DATA, **needs, blocks="ab" * 32)
    target = _lookup(repository, tmp_path, path)
    assert {name: getattr(target, name) for name in needs} == needs
    assert target.blocks == "ab" * 32


def test_needs_that_cannot_be_read_are_refused(repository: Repository, tmp_path: Path) -> None:
    repository.add("bundles/thirds/2/float-0123456789ab.zip", DATA, hardware_classes="tpu")
    with pytest.raises(TrustError, match="does not say what"):
        _lookup(repository, tmp_path, "bundles/thirds/2/float-0123456789ab.zip")
