"""The child that asks python-tuf: what it vouches for, and what it says where it cannot."""

import time
from pathlib import Path

import pytest

from edge_agent import RELEASED, signing, trust
from edge_agent.errors import ConfigError, TrustError, UnavailableError
from tests.fakes.agent_repository import Repository

PATH, DATA = "bundles/thirds/1/float-0123456789ab.zip", b"content"
OTHER = "bundles/thirds/2/float-0123456789ab.zip"


@pytest.fixture
def repository() -> Repository:
    made = Repository()
    made.add(PATH, DATA)
    return made


def _lookup(repository: Repository, folder: Path, path: str = PATH) -> trust.Target:
    return trust.lookup(
        repository.bootstrap, folder / "metadata", path, lambda name, _limit: repository.files.get(name)
    )


def test_a_signed_target_gives_its_size_and_digest_and_the_state_is_kept(
    repository: Repository, tmp_path: Path
) -> None:
    target = _lookup(repository, tmp_path)
    assert target.size == len(DATA)
    assert len(target.sha256) == 64
    repository.add(OTHER, b"newer")
    assert _lookup(repository, tmp_path, OTHER).size == 5
    assert (tmp_path / "metadata" / "timestamp.json").exists()


def test_what_was_fetched_once_is_not_fetched_again(repository: Repository, tmp_path: Path) -> None:
    asked: list[str] = []

    def fetch(name: str, _limit: int) -> bytes | None:
        asked.append(name)
        return repository.files.get(name)

    for _ in range(2):
        trust.lookup(repository.bootstrap, tmp_path / "metadata", PATH, fetch)
    first = ["2.root.json", "timestamp.json", "2.snapshot.json", "1.targets.json", "2.bundles.json"]
    assert asked == [*first, "2.root.json", "timestamp.json"]


def test_a_target_that_nobody_signed_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="names no target"):
        _lookup(repository, tmp_path, "bundles/thirds/9/float-0123456789ab.zip")


def test_a_root_that_is_no_root_is_refused(repository: Repository, tmp_path: Path) -> None:
    with pytest.raises(TrustError):
        trust.lookup(b"{}", tmp_path / "metadata", PATH, lambda name, _limit: repository.files.get(name))


def test_a_repository_that_is_not_there_yet_is_tried_again(repository: Repository, tmp_path: Path) -> None:
    del repository.files["timestamp.json"]
    with pytest.raises(UnavailableError, match=r"timestamp\.json"):
        _lookup(repository, tmp_path)


def test_silence_ends_the_child(repository: Repository, tmp_path: Path) -> None:
    def silent(name: str, _limit: int) -> bytes:
        raise UnavailableError(f"no answer to {name}")

    with pytest.raises(UnavailableError, match=r"no answer to 2\.root\.json"):
        trust.lookup(repository.bootstrap, tmp_path / "metadata", PATH, silent)


def test_what_a_bundle_needs_comes_with_its_target(repository: Repository, tmp_path: Path) -> None:
    needs = {"hardware_classes": ["tpu"], "min_agent_version": "0.2.0", "min_runtime_version": "ai-edge-litert 2.3.0"}
    repository.add(OTHER, DATA, **needs, blocks="ab" * 32)
    target = _lookup(repository, tmp_path, OTHER)
    assert {name: getattr(target, name) for name in needs} == needs
    assert target.blocks == "ab" * 32


def test_needs_that_cannot_be_read_are_refused(repository: Repository, tmp_path: Path) -> None:
    repository.add(OTHER, DATA, hardware_classes="tpu")
    with pytest.raises(TrustError, match="does not say what"):
        _lookup(repository, tmp_path, OTHER)


@pytest.mark.parametrize("harm", ["truncated", "flipped", "removed"])
def test_whatever_happens_to_a_file_of_kept_metadata_it_is_fetched_anew(
    repository: Repository, tmp_path: Path, harm: str
) -> None:
    _lookup(repository, tmp_path)
    files = sorted(path for path in (tmp_path / "metadata").rglob("*.json") if not path.is_symlink())
    assert [path.name for path in files] == [
        "bundles.json", "1.root.json", "seen.json", "snapshot.json", "targets.json", "timestamp.json",
    ]  # fmt: skip
    for path in files:
        content = path.read_bytes()
        if harm == "removed":
            path.unlink()
        else:
            half = len(content) // 2
            path.write_bytes(content[:half] if harm == "truncated" else content[:half] + b"\0" + content[half + 1 :])
        assert _lookup(repository, tmp_path).size == len(DATA)
    (tmp_path / "metadata" / "tmpkilled").write_bytes(b"half")
    _lookup(repository, tmp_path)
    assert not (tmp_path / "metadata" / "tmpkilled").exists()


def test_no_agent_is_from_the_future() -> None:
    assert time.time() >= RELEASED


def test_a_key_that_cannot_sign_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key")
    with pytest.raises(ConfigError, match="enrol this device again"):
        signing.sign(tmp_path / "key", b"payload")


def test_a_machine_that_starts_no_process_now_is_no_reason_to_refuse_a_bundle(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", str(tmp_path / "nothing"))
    with pytest.raises(UnavailableError, match="checks signatures cannot be started"):
        _lookup(repository, tmp_path)
    with pytest.raises(UnavailableError, match="signs cannot be started"):
        signing.sign(tmp_path / "key", b"payload")
