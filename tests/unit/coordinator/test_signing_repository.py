import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from sqlalchemy import select
from tuf.api.exceptions import DownloadHTTPError, ExpiredMetadataError
from tuf.ngclient import FetcherInterface, Updater

from contract.messages import BundleRef
from coordinator.errors import ConflictError, InvalidError, NotFoundError, SetupError
from coordinator.signing import repository
from coordinator.signing.repository import Target
from coordinator.signing.signer import Signer
from coordinator.signing.tables import tuf_metadata
from tests.fakes.fleet_site import LocalCoordinator, Site, make_bundle

DAY = 24 * 3600.0


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database=database)
    yield made
    made.close()


class Fetcher(FetcherInterface):
    """python-tuf's client over the metadata that the gateway hands out."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def _fetch(self, url: str) -> Iterator[bytes]:
        with self.site.engine.begin() as connection:
            content = self.site.signing.metadata(connection, url.removeprefix("mq://metadata/"))
        if content is None:
            raise DownloadHTTPError("none", 404)
        yield content


class Device:
    """A device that trusts what its enrolment gave it, with python-tuf's own client."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        with site.engine.begin() as connection:
            self.root = site.signing.root(connection)

    def trusted(self, ref: BundleRef) -> Target | None:
        updater = Updater(str(self.folder), "mq://metadata/", fetcher=Fetcher(self.site), bootstrap=self.root)
        updater._trusted_set.reference_time = repository.moment(self.site.now)
        updater.refresh()
        info = updater.get_targetinfo(ref.target)
        return Target(info.length, info.hashes["sha256"]) if info else None


def state(site: Site, ref: BundleRef) -> tuple[str, str] | None:
    with site.engine.begin() as connection:
        return site.signing.state(connection, ref.sha256)


def test_a_device_trusts_a_bundle_from_the_moment_it_is_signed(site: Site, tmp_path: Path) -> None:
    site.begin()
    device = Device(site, tmp_path / "tuf")
    ref = site.register()
    assert device.trusted(ref) is None
    assert state(site, ref) == ("pending", "")
    assert site.sign() == 1
    assert state(site, ref) == ("signed", "")
    size = len(site.storage.blobs.get(ref.sha256))
    assert device.trusted(ref) == Target(size, ref.sha256)
    second = site.register(2)
    site.sign()
    assert device.trusted(second) is not None
    assert device.trusted(ref) == Target(size, ref.sha256)


def test_enrolment_waits_for_a_root(site: Site) -> None:
    with site.engine.begin() as connection, pytest.raises(ConflictError, match="signer"):
        site.signing.root(connection)


def test_beginning_again_changes_nothing_and_another_signer_is_refused(site: Site, tmp_path: Path) -> None:
    site.begin()
    with site.engine.begin() as connection:
        root = site.signing.root(connection)
    site.begin()
    Signer(tmp_path / "signer").begin(site.local, site.now)
    with site.engine.begin() as connection:
        assert site.signing.root(connection) == root
    with pytest.raises(SetupError, match="another signer"):
        Signer(tmp_path / "thief").begin(site.local, site.now)


def test_a_signer_that_was_killed_before_it_published_goes_on_with_what_it_made(site: Site) -> None:
    class Deaf(LocalCoordinator):
        def publish_metadata(self, files: Mapping[str, str]) -> dict[str, object]:
            raise ConnectionError

        def submit_signature(self, id: str, metadata: str) -> object:  # type: ignore[override] # noqa: A002 its name
            raise ConnectionError

    deaf = Deaf(site.signing)
    with pytest.raises(ConnectionError):
        site.signer.begin(deaf, site.now)
    again = Signer(site.state / "signer")
    again.begin(site.local, site.now)
    ref = site.register()
    with pytest.raises(ConnectionError):
        again.work(deaf, site.now)
    assert state(site, ref) == ("pending", "")
    site.signer = Signer(site.state / "signer")
    site.begin()
    assert site.sign() == 1
    assert state(site, ref) == ("signed", "")


def test_an_answer_that_was_lost_may_be_given_again(site: Site) -> None:
    site.begin()
    site.register()
    (request,) = site.signing.requests()
    metadata = site.signer.sign(request, site.signing.bundle(request.bundle_sha256), site.now)
    first = site.signing.submit(request.id, metadata)
    assert site.signing.submit(request.id, metadata) == first
    with pytest.raises(ConflictError):
        site.signing.refuse(request.id, "too late")


def test_metadata_that_another_key_signed_is_refused(site: Site, tmp_path: Path) -> None:
    site.begin()
    ref = site.register()
    (request,) = site.signing.requests()
    thief = CryptoSigner.generate_ed25519()
    current = (site.state / "signer" / "metadata" / "bundles.json").read_bytes()
    target = Target(request.size, ref.sha256)
    forged = repository.add_target(current, ref.target, target, custom={}, signer=thief, now=site.now)
    with pytest.raises(InvalidError, match="does not verify"):
        site.signing.submit(request.id, forged)
    assert state(site, ref) == ("pending", "")


@pytest.mark.parametrize(
    ("path", "target", "message"),
    [
        ("bundles/digits/9/evil.zip", Target(1, "0" * 64), "nobody|no bundle that waits"),
        (None, Target(1, "0" * 64), "another size or digest"),
    ],
)
def test_the_coordinator_takes_only_what_it_asked_for(
    site: Site, path: str | None, target: Target, message: str
) -> None:
    site.begin()
    ref = site.register()
    (request,) = site.signing.requests()
    current = (site.state / "signer" / "metadata" / "bundles.json").read_bytes()
    key = site.signer._signer
    wrong = repository.add_target(current, path or ref.target, target, custom={}, signer=key, now=site.now)
    with pytest.raises(InvalidError, match=message):
        site.signing.submit(request.id, wrong)


def test_what_was_signed_stays_and_versions_only_grow(site: Site) -> None:
    site.begin()
    empty = (site.state / "signer" / "metadata" / "bundles.json").read_bytes()
    site.register()
    site.sign()
    second = site.register(2)
    (request,) = site.signing.requests()
    key = site.signer._signer
    target = Target(request.size, second.sha256)
    forgetful = repository.add_target(empty, second.target, target, custom={}, signer=key, now=site.now)
    with pytest.raises(InvalidError, match="does not follow"):
        site.signing.submit(request.id, forgetful)
    other = repository.add_target(forgetful, "bundles/a/1/b", target, custom={}, signer=key, now=site.now)
    with pytest.raises(InvalidError, match="must stay"):
        site.signing.submit(request.id, other)


def test_the_signer_refuses_what_is_not_the_bundle_that_its_name_says(site: Site) -> None:
    site.begin()
    ref = site.register()
    (request,) = site.signing.requests()
    good = site.signing.bundle(request.bundle_sha256)
    flipped = bytearray(good)
    flipped[100] ^= 1
    with pytest.raises(InvalidError, match="digest"):
        site.signer.sign(request, bytes(flipped), site.now)
    renamed = msgspec.structs.replace(request, target="bundles/digits/2/int8-000000000000.zip")
    with pytest.raises(InvalidError, match="makes it"):
        site.signer.sign(renamed, good, site.now)
    assert state(site, ref) == ("pending", "")


def test_a_blob_that_is_no_bundle_is_refused_and_the_reason_is_kept(site: Site) -> None:
    site.begin()
    data = b"not a bundle"
    digest = hashlib.sha256(data).hexdigest()
    site.storage.blobs.put(data)
    with site.engine.begin() as connection:
        site.signing.request(connection, sha256=digest, target="bundles/a/1/b", size=len(data), custom={}, now=site.now)
    assert site.sign() == 1
    with site.engine.begin() as connection:
        found = site.signing.state(connection, digest)
    assert found is not None
    assert found[0] == "refused"
    assert "not a bundle" in found[1]
    assert site.sign() == 0


def test_only_bundles_that_wait_can_be_fetched_by_the_signer(site: Site) -> None:
    secret = site.storage.blobs.put(b"weights")
    with pytest.raises(NotFoundError):
        site.signing.bundle(secret.sha256)


def test_the_timestamp_is_renewed_before_it_expires_and_devices_follow(site: Site, tmp_path: Path) -> None:
    site.begin()
    ref = site.register()
    site.sign()
    device = Device(site, tmp_path / "tuf")
    for _ in range(30):
        site.now += 0.4 * DAY
        site.signing.tick(site.now)
        assert device.trusted(ref) is not None
    site.now += 2 * DAY  # the coordinator was off
    with pytest.raises(ExpiredMetadataError):
        device.trusted(ref)
    site.signing.tick(site.now)
    assert device.trusted(ref) is not None


def test_a_request_is_made_once_for_a_bundle(site: Site) -> None:
    data = make_bundle()
    digest = hashlib.sha256(data).hexdigest()
    with site.engine.begin() as connection:
        ids = {
            site.signing.request(connection, sha256=digest, target="t", size=1, custom={}, now=1.0) for _ in range(2)
        }
    assert len(ids) == 1


def test_keys_are_their_owners_alone(site: Site) -> None:
    site.begin()
    found = [*(site.state / "signer" / "keys").glob("*.pem"), *(site.state / "pki" / "tuf").glob("*.pem")]
    assert sorted(path.name for path in found) == [
        "bundles.pem", "root.pem", "snapshot.pem", "targets.pem", "timestamp.pem",
    ]  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in found} == {0o600}


def test_old_versions_go_and_roots_and_the_newest_stay(site: Site, tmp_path: Path) -> None:
    site.begin()
    device = Device(site, tmp_path / "tuf")
    for version in range(1, 5):
        ref = site.register(version)
        site.sign()
        assert device.trusted(ref) is not None
    assert set(_names(site)) >= {"1.bundles.json", "2.bundles.json", "5.bundles.json"}  # all of one day
    site.now += 2 * DAY
    site.signing.tick(site.now)
    assert _names(site) == [
        "1.root.json", "1.targets.json", "4.bundles.json", "5.bundles.json", "5.snapshot.json", "6.snapshot.json",
        "timestamp.json",
    ]  # fmt: skip
    assert device.trusted(ref) is not None
    later = Device(site, tmp_path / "later")
    assert later.trusted(ref) is not None


def test_metadata_that_people_must_renew_is_warned_of_a_month_before(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    with site.engine.begin() as connection:
        assert site.signing.expiry(connection) == {}
    site.begin()
    with site.engine.begin() as connection:
        assert site.signing.expiry(connection) == dict.fromkeys(("root", "targets", "bundles"), site.now + 365 * DAY)
    site.now += 334 * DAY
    site.signing.tick(site.now)
    assert "expires" not in caplog.text
    site.now += 2 * DAY
    site.signing.tick(site.now)
    assert "root metadata expires in 29 days" in caplog.text


def _names(site: Site) -> list[str]:
    with site.engine.begin() as connection:
        return sorted(connection.execute(select(tuf_metadata.c.name)).scalars())
