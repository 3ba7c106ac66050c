"""What somebody may try who holds some of the keys, all of the network, or the clock: each by a device's real child.

The repository is made by the coordinator's and the signer's own code; root and targets need both of two keys.
"""

import hashlib
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from contract import limits
from coordinator.signing import repository as tuf
from edge_agent import slots, trust, verifier
from edge_agent.errors import RefusedError, TrustError
from edge_agent.trust import Clock, Target, lookup
from tests.fakes.agent_repository import DAY, Repository

START = 1_800_000_000.0
OLD, NEW = "bundles/thirds/1/float-0123456789ab.zip", "bundles/thirds/2/float-0123456789ab.zip"


class Device:
    """A device that enrolled when the repository began; its clock is right unless a test sets it."""

    def __init__(self, repository: Repository, folder: Path) -> None:
        self.repository, self.folder, self.root = repository, folder, repository.bootstrap
        self.now: float | None = None
        self.uptime, self.boot, self.built = 100.0, "boot-1", START - 30 * DAY

    def ask(self, path: str = OLD) -> Target:
        now = self.repository.now if self.now is None else self.now
        clock = Clock(now, self.boot, self.uptime, self.built)
        return lookup(self.root, self.folder, path, lambda name, _limit: self.repository.files.get(name), clock=clock)

    def refuses(self, reason: str, path: str = OLD) -> None:
        with pytest.raises(TrustError, match=reason):
            self.ask(path)


@pytest.fixture
def repository() -> Repository:
    made = Repository(START)
    made.add(OLD, b"old")
    return made


@pytest.fixture(scope="module")
def pristine() -> Repository:
    made = Repository(START)
    made.add(OLD, b"old")
    return made


@pytest.fixture
def device(repository: Repository, tmp_path: Path) -> Device:
    made = Device(repository, tmp_path / "metadata")
    assert made.ask().size == 3
    return made


# rollback


def test_rollback_to_files_that_were_valid_once_is_refused(repository: Repository, device: Device) -> None:
    before = dict(repository.files)
    repository.add(NEW, b"new!")
    assert device.ask(NEW).size == 4
    repository.files = before
    device.refuses("BadVersionNumberError")


def test_rollback_of_bundles_with_stolen_online_keys_is_refused(repository: Repository, device: Device) -> None:
    repository.add(NEW, b"new!")
    device.ask(NEW)
    del repository.files["3.bundles.json"]  # a new snapshot names the version before
    repository.publish()
    device.refuses("BadVersionNumberError")


# freeze


def test_freeze_is_noticed_when_the_timestamp_expires(repository: Repository, device: Device) -> None:
    frozen = dict(repository.files)
    repository.now += 1.5 * DAY
    device.refuses("ExpiredMetadataError")
    repository.publish()
    assert device.ask().size == 3
    repository.files = frozen
    device.refuses("BadVersionNumberError")


def test_freeze_is_noticed_with_a_clock_that_stands_at_1970_by_the_devices_uptime(
    repository: Repository, device: Device
) -> None:
    device.now = 0.0
    device.uptime += 0.9 * DAY
    assert device.ask().size == 3
    device.uptime += 0.2 * DAY
    device.refuses("ExpiredMetadataError.*clock says 1970-01-01.*it is 2027-01-16 .* at least")


def test_freeze_is_noticed_with_a_clock_at_1970_over_several_boots(repository: Repository, device: Device) -> None:
    device.now = 0.0
    for boot in range(2, 5):
        device.boot, device.uptime = f"boot-{boot}", 1.0
        device.ask()
        device.uptime += 0.32 * DAY
        device.ask()
    device.uptime += 0.1 * DAY
    device.refuses("ExpiredMetadataError")


def test_a_device_without_a_clock_goes_on_with_fresh_metadata(repository: Repository, device: Device) -> None:
    device.now = 0.0
    for _ in range(5):
        repository.now += 0.9 * DAY
        device.uptime += 0.9 * DAY
        repository.publish()
        assert device.ask().size == 3


def test_freeze_before_the_newest_root_was_signed_is_noticed_at_1970(repository: Repository, device: Device) -> None:
    device.now = 0.0
    repository.now += 10 * DAY
    repository.rotate("root")  # the root comes through, and the timestamp of ten days ago
    device.refuses("ExpiredMetadataError")


def test_a_new_device_at_1970_takes_nothing_that_expired_before_its_agent_was_made(
    repository: Repository, tmp_path: Path
) -> None:
    device = Device(repository, tmp_path / "metadata")
    device.now, device.built = 0.0, START + 30 * DAY
    device.refuses("ExpiredMetadataError")


def test_a_clock_at_2100_is_named_and_does_no_harm_once_it_is_set(repository: Repository, device: Device) -> None:
    device.now = 4_102_444_800.0
    device.refuses("clock says 2100-01-01 00:00 UTC, and signatures prove no later time than 2027-01-15")
    device.now = None
    assert device.ask().size == 3
    device.now = 0.0
    assert device.ask().size == 3


@pytest.mark.parametrize("now", [-1e6, 1e18])
def test_a_clock_beyond_all_calendars_is_no_crash(device: Device, now: float) -> None:
    device.now = now
    if now < 0:
        assert device.ask().size == 3
    else:
        device.refuses("ExpiredMetadataError")


# mix-and-match


@pytest.mark.parametrize("role", ["snapshot", "bundles"])
def test_mix_and_match_of_files_from_two_moments_is_refused(repository: Repository, device: Device, role: str) -> None:
    old = repository.newest(role)
    repository.add(NEW, b"new!")
    newest = next(name for name, content in repository.files.items() if content == repository.newest(role))
    repository.files[newest] = old
    device.refuses("BadVersionNumberError", NEW)


# endless data


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json", "3.snapshot.json", "3.bundles.json"])
def test_endless_data_is_cut_off_for_every_file(repository: Repository, device: Device, name: str) -> None:
    repository.add(NEW, b"new!")
    repository.files[name] = b"[" * (limits.METADATA_BYTES + 1)
    device.refuses(f"{name} has more than", NEW)


def test_endless_data_is_cut_off_by_the_child_itself(repository: Repository, tmp_path: Path) -> None:
    def fetch(_name: str, limit: int) -> bytes:
        return b"[" * (limit + 1)

    task = trust.Task(repository.bootstrap, str(tmp_path), OLD, Clock(START, "", 0.0))
    answer = verifier.check(task, fetch)
    assert isinstance(answer, verifier.Failure)
    assert answer.trust
    assert "DownloadLengthMismatchError" in answer.reason


def test_deeply_nested_metadata_is_refused(repository: Repository, device: Device) -> None:
    repository.files["timestamp.json"] = b"[" * limits.TIMESTAMP_BYTES
    device.refuses("DeserializationError|RepositoryError")


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_bytes_come_the_child_answers_in_a_sentence(pristine: Repository, data: st.DataObject) -> None:
    files = dict(pristine.files)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(files)))
        content = bytearray(files[name])
        match data.draw(st.sampled_from(["flip", "cut", "insert", "replace"])):
            case "flip":
                content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            case "cut":
                del content[data.draw(st.integers(0, len(content) - 1)) :]
            case "insert":
                where = data.draw(st.integers(0, len(content)))
                content[where:where] = data.draw(
                    st.sampled_from([b"NaN", b"1e999", b"9" * 400, b"[" * 999, b"\\ud800"])
                )
            case _:
                content = bytearray(data.draw(st.binary(max_size=100)))
        files[name] = bytes(content) or b"x"
    with tempfile.TemporaryDirectory() as folder:
        task = trust.Task(pristine.bootstrap, folder, OLD, Clock(START, "", 0.0, START - DAY))
        answer = verifier.check(task, lambda name, _limit: files.get(name))
    assert isinstance(answer, Target | verifier.Failure)
    if isinstance(answer, Target):  # the harm was to a file that was not needed
        assert answer.sha256 == hashlib.sha256(b"old").hexdigest()


# tampered target


def test_a_tampered_target_of_the_same_length_is_refused(device: Device) -> None:
    target = device.ask()
    assert target.sha256 == hashlib.sha256(b"old").hexdigest()
    with pytest.raises(RefusedError, match=r"SHA-256|digest"):
        slots.parse(b"0ld", target.sha256)


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "bundles"])
def test_a_tampered_byte_in_signed_metadata_is_refused(repository: Repository, device: Device, role: str) -> None:
    repository.add(NEW, b"new!")
    name = "timestamp.json" if role == "timestamp" else f"3.{role}.json"
    content = repository.files[name]
    where = content.index(b'"spec_version"')
    repository.files[name] = content[:where] + b'"spec_versioN"' + content[where + 14 :]
    device.refuses("Error", NEW)


# stolen keys


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_stolen_online_keys_cannot_sign_a_bundle(repository: Repository, device: Device, role: str) -> None:
    repository.add(NEW, b"evil", signer=repository.keys[role][0])
    device.refuses("UnsignedMetadataError", NEW)


def test_a_stolen_coordinator_cannot_delegate_bundles_to_itself(repository: Repository, device: Device) -> None:
    online = [repository.keys[role][0] for role in ("snapshot", "timestamp")]
    thief = CryptoSigner.generate_ed25519()
    targets = tuf.next_targets(repository.newest("targets"), tuf.Holders([thief.public_key]), repository.now, version=2)
    repository.put("targets", repository.signed(targets, [*online, thief]))
    repository.add(NEW, b"evil", signer=thief)
    device.refuses("UnsignedMetadataError", NEW)


def test_a_stolen_coordinator_cannot_make_a_root(repository: Repository, device: Device) -> None:
    online = [repository.keys[role][0] for role in ("snapshot", "timestamp")]
    repository.rotate("root", "targets", signers=online)
    device.refuses("UnsignedMetadataError", NEW)


def test_the_signers_stolen_key_cannot_change_who_signs(repository: Repository, device: Device) -> None:
    signer = repository.keys["bundles"][0]
    repository.rotate("root", signers=[signer, signer])
    device.refuses("UnsignedMetadataError")


def test_one_of_two_root_keys_cannot_make_a_root(repository: Repository, device: Device) -> None:
    stolen, lost = repository.keys["root"]
    mine = CryptoSigner.generate_ed25519()
    repository.keys["root"] = [mine]
    after = tuf.next_root(repository.newest("root"), {"root": repository.holders("root")}, repository.now, version=2)
    repository.put("root", repository.signed(after, [stolen, mine]))
    device.refuses("UnsignedMetadataError")
    repository.put("root", repository.signed(after, [stolen, lost, mine]))  # with the other key it would be one
    assert device.ask().size == 3


def test_one_of_two_targets_keys_cannot_delegate(repository: Repository, device: Device) -> None:
    thief = CryptoSigner.generate_ed25519()
    targets = tuf.next_targets(repository.newest("targets"), tuf.Holders([thief.public_key]), repository.now, version=2)
    repository.put("targets", repository.signed(targets, repository.keys["targets"][:1]))
    repository.add(NEW, b"evil", signer=thief)
    device.refuses("UnsignedMetadataError", NEW)


def test_a_key_that_is_listed_twice_counts_once(repository: Repository, device: Device) -> None:
    stolen, _ = repository.keys["root"]
    after = tuf.next_root(repository.newest("root"), {}, repository.now, version=2)
    once = msgspec.json.decode(repository.signed(after, [stolen]))
    once["signatures"] *= 2
    repository.files["2.root.json"] = msgspec.json.encode(once)
    device.refuses("Error")


# rotation and recovery


def test_root_rotation_succeeds_across_five_missed_versions(repository: Repository, device: Device) -> None:
    for roles in [("root",), ("root", "timestamp"), ("root", "snapshot"), ("timestamp", "snapshot"), ("root",)]:
        repository.now += 0.2 * DAY
        repository.rotate(*roles)
    repository.add(NEW, b"new!")
    assert device.ask(NEW).size == 4
    assert (device.folder / "root_history" / "6.root.json").exists()


def test_a_rotation_with_a_version_left_out_is_refused(repository: Repository, device: Device) -> None:
    for _ in range(5):
        repository.rotate("root", "timestamp", "snapshot")
    del repository.files["4.root.json"]
    device.refuses("UnsignedMetadataError")


def test_expired_roots_on_the_way_are_followed_to_one_that_has_not(repository: Repository, device: Device) -> None:
    for _ in range(3):
        repository.now += 300 * DAY
        repository.rotate("root")
    renewed = tuf.next_targets(repository.newest("targets"), None, repository.now, version=2)
    repository.put("targets", repository.signed(renewed, repository.keys["targets"]))
    repository.add(NEW, b"new!")
    assert device.ask(NEW).size == 4


def test_fast_forwarded_versions_are_forgotten_when_a_root_replaces_the_online_keys(
    repository: Repository, device: Device
) -> None:
    honest = dict(repository.versions)
    repository.versions = dict.fromkeys(honest, 2**31)
    repository.publish()  # by a thief
    assert device.ask().size == 3
    repository.versions = honest
    repository.publish()
    device.refuses("BadVersionNumberError")
    repository.rotate("snapshot", "timestamp")
    assert device.ask().size == 3


def test_a_timestamp_from_the_future_is_forgotten_when_a_root_replaces_its_key(
    repository: Repository, device: Device
) -> None:
    repository.now += 3650 * DAY
    repository.publish()  # by a thief who wants that nothing is ever fresh again
    repository.now -= 3650 * DAY
    device.refuses("expired")
    repository.now += 0.1 * DAY
    repository.publish()
    device.refuses("ExpiredMetadataError|BadVersion")
    repository.rotate("snapshot", "timestamp")
    assert device.ask().size == 3
