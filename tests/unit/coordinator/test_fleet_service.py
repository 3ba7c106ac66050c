import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from contract import limits, signatures
from contract.errors import TopicError
from contract.messages import Alert, Gone
from coordinator import pki
from coordinator.broker import revoked
from coordinator.errors import ConflictError, DeniedError, InvalidError, NotFoundError
from coordinator.fleet import certificates, cohort
from coordinator.fleet.revocation import Revocation
from coordinator.fleet.tables import device_alerts, devices
from tests.fakes.broker_process import device_key_and_csr
from tests.fakes.fleet_site import Site


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database=database)
    yield made
    made.close()


def test_a_token_enrols_once_and_only_its_hash_is_kept(site: Site) -> None:
    token = site.fleet.add("meter-1", {"site": "north"}).token
    with site.engine.begin() as connection:
        row = connection.execute(select(devices)).mappings().one()
    assert token not in str(dict(row))
    _, csr = device_key_and_csr("meter-1")
    made = site.fleet.enrol(token, csr, "x86-64")
    assert (made.device, made.broker_host, made.broker_port) == ("meter-1", "127.0.0.1", 2)
    with pytest.raises(DeniedError, match="used"):
        site.fleet.enrol(token, device_key_and_csr("meter-1")[1], "x86-64")
    with pytest.raises(ConflictError):
        site.fleet.add("meter-1")


def test_a_device_whose_answer_was_lost_asks_again_with_its_key_and_gets_the_same_certificate(site: Site) -> None:
    token = site.fleet.add("meter-1").token
    _, csr = device_key_and_csr("meter-1")
    first = site.fleet.enrol(token, csr, "x86-64")
    site.now += 60.0
    assert site.fleet.enrol(token, csr, "armv7") == first
    assert site.fleet.get("meter-1").hardware_class == "x86-64"
    site.now += 25 * 3600
    with pytest.raises(DeniedError, match="expired"):
        site.fleet.enrol(token, csr, "x86-64")


def test_a_wrong_request_does_not_use_the_token_up(site: Site) -> None:
    token = site.fleet.add("meter-1").token
    _, other = device_key_and_csr("meter-2")
    with pytest.raises(InvalidError):
        site.fleet.enrol(token, other, "")
    _, csr = device_key_and_csr("meter-1")
    assert site.fleet.enrol(token, csr, "").device == "meter-1"


def test_a_new_token_replaces_an_unused_one_and_tokens_expire(site: Site) -> None:
    first, second = site.fleet.add("meter-1").token, site.fleet.add("meter-1").token
    _, csr = device_key_and_csr("meter-1")
    with pytest.raises(DeniedError):
        site.fleet.enrol(first, csr, "")
    site.now += 25 * 3600
    with pytest.raises(DeniedError, match="expired"):
        site.fleet.enrol(second, csr, "")


def test_names_tags_and_classes_are_checked(site: Site) -> None:
    with pytest.raises(TopicError):
        site.fleet.add("coordinator")
    with pytest.raises(InvalidError):
        site.fleet.add("meter-1", {"a=b": "c"})
    with pytest.raises(InvalidError):
        site.fleet.add("meter-1", hardware_class="a;b")
    with pytest.raises(NotFoundError, match="devices add"):
        site.fleet.get("meter-1")


def test_cohorts_are_queries_over_enrolled_devices(site: Site) -> None:
    site.enrol("meter-1", tags={"site": "north"})
    site.enrol("meter-2", tags={"site": "south"}, hardware_class="armv7")
    site.enrol("meter-3")
    site.fleet.add("meter-4", {"site": "north"})
    expected = {
        "all": ["meter-1", "meter-2", "meter-3"],
        "name=meter-3,meter-1": ["meter-1", "meter-3"],
        "tag:site=north": ["meter-1"],
        "tag:site=north,south": ["meter-1", "meter-2"],
        "class=x86-64": ["meter-1", "meter-3"],
        "class=armv7; tag:site=south": ["meter-2"],
        "class=armv7;tag:site=north": [],
    }
    with site.engine.begin() as connection:
        assert {query: site.fleet.members(connection, query) for query in expected} == expected
    assert [device.name for device in site.fleet.find("tag:site=north")] == ["meter-1", "meter-4"]


@given(st.text(max_size=30))
def test_any_text_is_a_cohort_in_the_syntax_or_an_error(text: str) -> None:
    query = None
    with contextlib.suppress(InvalidError):
        query = cohort.parse(text)
    if query is not None:
        assert all(part.strip() == "all" or "=" in part for part in text.split(";"))


@pytest.mark.parametrize(
    "text", ["", ";", "name=", "name", "tag:=x", "tag:a b=x", "region=x", "name=a,,b", "all,name=a"]
)
def test_a_query_that_cannot_be_read_is_never_everybody(text: str) -> None:
    with pytest.raises(InvalidError):
        cohort.parse(text)


def test_presence_follows_the_boot_that_spoke_last(site: Site) -> None:
    site.enrol("meter-1")
    with site.engine.begin() as connection:
        site.fleet.on_hello(connection, "meter-1", site.hello("meter-1", "b1"), 1.0)
        site.fleet.on_hello(connection, "meter-1", site.hello("meter-1", "b2"), 2.0)
        site.fleet.on_gone(connection, "meter-1", Gone(boot="b1", connection=1), 3.0)
    device = site.fleet.get("meter-1")
    assert (device.connected, device.last_seen) == (True, 2.0)
    assert device.hello is not None
    assert device.hello["inferences"] == 7
    with site.engine.begin() as connection:
        site.fleet.on_gone(connection, "meter-1", Gone(boot="b2", connection=1), 4.0)
    assert not site.fleet.get("meter-1").connected


def test_each_desired_state_has_a_larger_revision_and_is_published_once(site: Site) -> None:
    site.enrol("meter-1")
    ref = site.register()
    with site.engine.begin() as connection:
        assert site.fleet.unpublished(connection) == []
        site.fleet.set_desired(connection, "meter-1", "digits", "r1", ref)
        second = site.fleet.set_desired(connection, "meter-1", "digits", None, None)
        assert second.revision == 2
        assert site.fleet.unpublished(connection) == [("meter-1", second)]
        site.fleet.published(connection, "meter-1", 1)
        assert site.fleet.unpublished(connection) == [("meter-1", second)]
        site.fleet.published(connection, "meter-1", 2)
        assert site.fleet.unpublished(connection) == []
        site.fleet.republish(connection)
        assert site.fleet.unpublished(connection) == [("meter-1", second)]


def test_a_token_names_its_device_for_its_audience_and_its_time_only(site: Site) -> None:
    site.enrol("meter-1")
    site.enrol("meter-2")
    site.fleet.add("meter-3")
    key = site.keys["meter-1"]
    token = signatures.issue_token(key, "meter-1", "blobs", site.now + 60)
    assert site.fleet.device_of(token, "blobs") == "meter-1"
    refused = {
        "another purpose than renew": (token, "renew"),
        "cannot be read|not a device token": ("none", "blobs"),
        "not enrolled": (signatures.issue_token(key, "meter-3", "blobs", site.now + 60), "blobs"),
        "does not verify": (signatures.issue_token(key, "meter-2", "blobs", site.now + 60), "blobs"),
        "lasts too long": (signatures.issue_token(key, "meter-1", "blobs", site.now + 86400), "blobs"),
        "expired": (signatures.issue_token(key, "meter-1", "blobs", float("nan")), "blobs"),
    }
    for sentence, (given_token, audience) in refused.items():
        with pytest.raises(DeniedError, match=sentence):
            site.fleet.device_of(given_token, audience)
    site.now += 60 + 200  # within what clocks may differ
    assert site.fleet.device_of(token, "blobs") == "meter-1"
    site.now += 200
    with pytest.raises(DeniedError, match="expired"):
        site.fleet.device_of(token, "blobs")


def test_the_newest_alerts_of_a_device_are_kept_and_shown_newest_first(site: Site) -> None:
    site.enrol("meter-1")
    site.enrol("meter-2")
    with site.engine.begin() as connection:
        for number in range(130):
            alert = Alert(kind="disk", text=f"full {number}", model="digits", at=float(number))
            site.fleet.on_alert(connection, "meter-1", alert, 5.0)
        site.fleet.on_alert(connection, "meter-2", Alert(kind="clock", text="it is 1970", at=1.0), 6.0)
        kept = connection.execute(select(device_alerts.c.text).where(device_alerts.c.device == "meter-1")).scalars()
        assert [text.split()[1] for text in kept] == [str(number) for number in range(30, 130)]
    shown = site.fleet.get("meter-1").alerts
    assert [alert.text for alert in shown] == [f"full {number}" for number in range(129, 119, -1)]
    assert (shown[0].kind, shown[0].model, shown[0].at, shown[0].received_at) == ("disk", "digits", 129.0, 5.0)
    assert [alert.text for alert in site.fleet.get("meter-2").alerts] == ["it is 1970"]


@pytest.mark.parametrize(
    "alert",
    [
        Alert(kind="", text="x", at=1.0),
        Alert(kind="k" * 33, text="x", at=1.0),
        Alert(kind="k", text="x" * 2001, at=1.0),
        Alert(kind="k", text="x", model="m" * 129, at=1.0),
        Alert(kind="k", text="x", at=float("nan")),
        Alert(kind="k", text="x", at=float("inf")),
    ],
)
def test_an_alert_that_does_not_fit_is_refused(site: Site, alert: Alert) -> None:
    site.enrol("meter-1")
    with site.engine.begin() as connection, pytest.raises(InvalidError):
        site.fleet.on_alert(connection, "meter-1", alert, 5.0)
    assert site.fleet.get("meter-1").alerts == []


def test_a_token_is_worth_nothing_once_the_certificate_has_expired_but_for_renewal(site: Site) -> None:
    site.enrol("meter-1")

    def ask(audience: str) -> str:
        token = signatures.issue_token(site.keys["meter-1"], "meter-1", audience, site.now + 60)
        return site.fleet.device_of(token, audience)

    site.now += 31 * 86400
    with pytest.raises(DeniedError, match="edge-agent enrol --again"):
        ask("blobs")
    assert ask("renew") == "meter-1"
    with site.engine.begin() as connection:
        site.fleet.renew(connection, "meter-1")
    assert ask("blobs") == "meter-1"
    site.now += 61 * 86400
    with pytest.raises(DeniedError, match="expired"):
        ask("renew")


def test_a_revoked_device_is_nobody_any_more(site: Site) -> None:
    site.enrol("meter-1")
    site.enrol("meter-2")
    token = signatures.issue_token(site.keys["meter-1"], "meter-1", "blobs", site.now + 60)
    revoked = site.fleet.revoke("meter-1", "stolen")
    assert (revoked.revoked_at, revoked.revoked_reason, revoked.connected) == (site.now, "stolen", False)
    site.now += 1
    assert site.fleet.revoke("meter-1", "again").revoked_at == site.now - 1
    with pytest.raises(DeniedError, match="revoked"):
        site.fleet.device_of(token, "blobs")
    with site.engine.begin() as connection:
        assert site.fleet.members(connection, "all") == ["meter-2"]
        assert not site.fleet.is_enrolled(connection, "meter-1")
        assert len(certificates.revoked(connection, site.now)) == 1
        assert certificates.revoked(connection, site.now + 31 * 86400) == {}  # it has expired by then
    with pytest.raises(NotFoundError):
        site.fleet.revoke("meter-9")
    with pytest.raises(InvalidError, match="reason"):
        site.fleet.revoke("meter-1", "x" * 501)


def test_a_token_that_was_not_used_is_worth_nothing_after_a_revocation(site: Site) -> None:
    token = site.fleet.add("meter-1").token
    site.fleet.revoke("meter-1")
    with pytest.raises(DeniedError):
        site.fleet.enrol(token, device_key_and_csr("meter-1")[1], "")
    with pytest.raises(ConflictError, match="--again"):
        site.fleet.add("meter-1")
    again = site.fleet.add("meter-1", again=True).token
    assert site.fleet.enrol(again, device_key_and_csr("meter-1")[1], "").device == "meter-1"


def test_a_revoked_device_comes_back_with_a_new_key_and_a_new_token_only(site: Site) -> None:
    token = site.fleet.add("meter-1", {"site": "north"}).token
    key, csr = device_key_and_csr("meter-1")
    site.fleet.enrol(token, csr, "armv7")
    site.fleet.revoke("meter-1", "stolen")
    with pytest.raises(DeniedError):
        site.fleet.enrol(token, csr, "armv7")
    again = site.fleet.add("meter-1", again=True).token
    with pytest.raises(InvalidError, match="--new-key"):
        site.fleet.enrol(again, csr, "")
    site.fleet.enrol(again, device_key_and_csr("meter-1")[1], "")
    device = site.fleet.get("meter-1")
    assert (device.revoked_at, device.revoked_reason, device.tags, device.hardware_class) == (
        None,
        "",
        {"site": "north"},
        "armv7",
    )
    with pytest.raises(DeniedError, match="verify"):
        site.fleet.device_of(signatures.issue_token(key, "meter-1", "blobs", site.now + 60), "blobs")


def test_enrolling_anew_with_the_same_key_revokes_nothing_and_with_another_key_ends_the_old_one(site: Site) -> None:
    first = site.fleet.add("meter-1").token
    _, csr = device_key_and_csr("meter-1")
    old = site.fleet.enrol(first, csr, "").certificate
    second = site.fleet.add("meter-1", again=True).token
    with site.engine.begin() as connection:
        assert site.fleet.certificate(connection, "meter-1") == old  # until the token is used
    assert site.fleet.enrol(second, csr, "").certificate != old
    with site.engine.begin() as connection:
        assert certificates.revoked(connection, site.now) == {}
    third = site.fleet.add("meter-1", again=True).token
    new = site.fleet.enrol(third, device_key_and_csr("meter-1")[1], "").certificate
    with site.engine.begin() as connection:
        listed = certificates.revoked(connection, site.now)
    assert pki.serial(old) in listed
    assert pki.serial(new) not in listed
    assert len(listed) == 2


class Told:
    """What a broker would be told, in order."""

    def __init__(self) -> None:
        self.crls: list[frozenset[int]] = []
        self.kicked: list[list[str]] = []
        self.reachable = True

    def publish(self, crl_pem: bytes) -> None:
        self.crls.append(pki.revoked_serials(crl_pem))

    def kick(self, names: Sequence[str]) -> bool:
        if self.reachable:
            self.kicked.append(list(names))
        return self.reachable


def test_the_broker_hears_of_a_revocation_until_it_could_be_told_and_of_nothing_otherwise(site: Site) -> None:
    told = Told()
    revocation = Revocation(site.storage, site.config, site.authority, publish=told.publish, kick=told.kick)
    site.enrol("meter-1")
    site.enrol("meter-2")
    for _ in range(3):
        revocation.tick(site.now)
    assert (told.crls, told.kicked) == ([frozenset()], [])
    site.fleet.revoke("meter-1")
    told.reachable = False
    revocation.tick(site.now)
    assert len(told.crls[-1]) == 1
    assert told.kicked == []
    told.reachable = True
    for second in range(20):
        revocation.tick(site.now + 0.5 * second)
    assert told.kicked == [["meter-1"]] * 3
    before = len(told.crls)
    revocation.tick(site.now + 86400.0 - 60)
    assert len(told.crls) == before
    revocation.tick(site.now + 86400.0 + 60)  # the list grows old
    assert len(told.crls) == before + 1


def test_a_clock_that_is_set_back_delays_no_revocation(site: Site) -> None:
    told = Told()
    revocation = Revocation(site.storage, site.config, site.authority, publish=told.publish, kick=told.kick)
    site.enrol("meter-1")
    site.enrol("meter-2")
    site.fleet.revoke("meter-1")
    revocation.tick(site.now)
    site.now -= 3600
    site.fleet.revoke("meter-2")
    revocation.tick(site.now)
    assert len(told.crls[-1]) == 2
    assert told.kicked[-1] == ["meter-1", "meter-2"]


def test_many_devices_are_cut_off_with_messages_that_fit(site: Site) -> None:
    told = Told()
    names = [f"{number:04d}-{'n' * 58}" for number in range(450)]
    with site.engine.begin() as connection:
        rows = [{"name": name, "tags": {}, "created_at": 1.0, "revoked_at": 2.0, "kicks_left": 1} for name in names]
        connection.execute(devices.insert(), rows)
    revocation = Revocation(site.storage, site.config, site.authority, publish=told.publish, kick=told.kick)
    revocation.tick(site.now)
    assert sorted(name for batch in told.kicked for name in batch) == names
    assert max(len(revoked.kick_command(batch)) for batch in told.kicked) < limits.MESSAGE_BYTES
    revocation.tick(site.now + 10)
    assert len(told.kicked) == 3


def test_a_list_that_could_not_be_given_to_the_broker_is_given_again_before_anybody_is_cut_off(site: Site) -> None:
    told = Told()
    failing = [True]

    def publish(crl_pem: bytes) -> None:
        if failing[0]:
            raise OSError("no space left")
        told.publish(crl_pem)

    revocation = Revocation(site.storage, site.config, site.authority, publish=publish, kick=told.kick)
    site.enrol("meter-1")
    site.fleet.revoke("meter-1")
    with pytest.raises(OSError, match="no space"):
        revocation.tick(site.now)
    assert told.kicked == []
    failing[0] = False
    revocation.tick(site.now + 1)
    assert told.crls == []  # the command that reloads may be slow, and is not run without end
    revocation.tick(site.now + 5)
    assert (len(told.crls), told.kicked) == (1, [["meter-1"]])
