"""The certificate renews by itself, over MQTT or HTTPS, never in a tight loop."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.messages import RenewalReply, RenewalRequest, Up
from coordinator import pki
from edge_agent import certificate, config, renewal
from edge_agent.certificate import Validity
from edge_agent.enrol import enrol
from edge_agent.errors import ConfigError, EnrolmentError, UnavailableError
from edge_agent.identity import Identity
from edge_agent.liveness import Stopping
from edge_agent.renewal import Pace, Renewal
from tests.fakes.enrolment_api import TOKEN, Api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    running = Api(tmp_path_factory.mktemp("api"))
    yield running
    running.stop()


class Now(Stopping):
    """Nobody waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        return self.is_set()


class Device:
    """An enrolled folder with a Renewal, a clock to set, and whoever answers over MQTT."""

    def __init__(self, api: Api, root: Path, *, has_url: bool = True) -> None:
        enrol(root, device="meter-1", url=api.url, ca=api.ca, token=TOKEN, hardware_class="x86-64")
        self.api, self.folder = api, config.Folder(root)
        self.now = time.time()
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.sent = 0
        self.renewed = 0
        self.answer: Callable[[], bytes] | None = None
        self.stopping = Now()
        self.renewal = Renewal(
            root,
            has_url=has_url,
            send=self._send,
            renewed=self._renewed,
            stopping=self.stopping,
            retry_s=0.5,
            clock=lambda: self.now,
            tell=lambda event, **fields: self.events.append((event, fields)),
        )

    def _send(self, message: Up) -> bool:
        assert isinstance(message, RenewalRequest)
        self.sent += 1
        if self.answer is None:
            return False
        self.renewal.accept(RenewalReply(certificate=self.answer().decode()))
        return True

    def _renewed(self) -> None:
        self.renewed += 1
        Identity("meter-1", self.folder).tls()  # key and certificate belong together

    def install(self, *, begins_days_ago: float, days: int) -> None:
        moment = datetime.now(UTC) - timedelta(days=begins_days_ago)
        self.folder.certificate.write_bytes(self.api.authority.renew(self.api.issued, "meter-1", days=days, now=moment))

    def fresh(self) -> bytes:
        return self.api.authority.renew(self.api.issued, "meter-1", days=30, now=datetime.now(UTC))

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


def test_it_renews_over_mqtt_when_a_third_of_the_life_is_left_and_not_before(api: Api, tmp_path: Path) -> None:
    device = Device(api, tmp_path)
    device.install(begins_days_ago=19, days=30)
    device.answer = device.fresh
    device.renewal.work()
    assert (device.sent, device.renewed) == (0, 0)
    device.now += 1.1 * 86400
    device.renewal.work()
    device.renewal.work()
    assert (device.sent, device.renewed, device.names()) == (1, 1, ["renewed"])
    assert certificate.show(device.folder).ends > time.time() + 29 * 86400


def test_where_nobody_answers_over_mqtt_it_renews_over_https_with_its_key(api: Api, tmp_path: Path) -> None:
    device = Device(api, tmp_path)
    device.install(begins_days_ago=25, days=30)
    device.renewal.work()
    assert (device.renewed, device.names()) == (1, ["renewed"])


def test_an_expired_certificate_is_said_once_and_renewed_over_https(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = Device(api, tmp_path)
    device.install(begins_days_ago=40, days=30)
    device.renewal.work()
    assert device.names() == ["certificate-expired", "renewed"]
    assert "edge-agent enrol --again" in caplog.text


def test_without_api_and_session_it_says_what_is_missing_and_waits_longer_and_longer(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(api, tmp_path, has_url=False)
    device.install(begins_days_ago=40, days=30)
    began = clock = time.monotonic()
    tries = []
    monkeypatch.setattr(renewal.time, "monotonic", lambda: clock)
    for _ in range(24 * 60):  # a day, by the minute
        device.renewal.work()
        tries.append(device.names().count("renewal-failed"))
        clock += renewal.LOOK_S
    assert 8 <= tries[-1] <= 20
    assert clock - began == pytest.approx(86400)
    assert "no url" in device.events[-1][1]["reason"]
    assert device.names().count("certificate-expired") == 1
    assert device.renewed == 0


def test_a_wrong_clock_does_not_renew_in_a_tight_loop(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(api, tmp_path)
    device.answer = device.folder.certificate.read_bytes  # the coordinator finds it good
    device.now = time.time() + 75 * 365 * 86400.0
    clock = time.monotonic()
    monkeypatch.setattr(renewal.time, "monotonic", lambda: clock)
    for _ in range(24 * 60):
        device.renewal.work()
        clock += renewal.LOOK_S
    assert device.sent <= 5
    assert "set the clock" in caplog.text


def test_a_device_at_1970_asks_now_and_then_and_keeps_a_good_certificate(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(api, tmp_path)
    device.install(begins_days_ago=25, days=30)
    device.answer, device.now = device.fresh, 60.0
    clock = time.monotonic()
    monkeypatch.setattr(renewal.time, "monotonic", lambda: clock)
    device.renewal.work()
    assert (device.renewed, device.names()) == (1, ["renewed"])
    device.answer = device.folder.certificate.read_bytes
    for _ in range(24 * 60):
        device.renewal.work()
        clock += renewal.LOOK_S
    assert 3 <= device.sent <= 6
    assert device.renewed == 1


@pytest.mark.parametrize("what", ["another device", "another key", "another authority", "no certificate"])
def test_a_certificate_that_is_not_for_this_device_is_not_taken(api: Api, tmp_path: Path, what: str) -> None:
    device = Device(api, tmp_path / "agent", has_url=False)
    device.install(begins_days_ago=25, days=30)
    before = device.folder.certificate.read_bytes()
    pki.create(tmp_path / "other")
    other = pki.Authority.load(tmp_path / "other")
    now = datetime.now(UTC)
    bad = {
        "another device": api.authority.renew(api.issued, "meter-2", days=30, now=now),
        "another key": api.authority.renew((api.ca.parent / "api.crt").read_bytes(), "meter-1", days=30, now=now),
        "another authority": other.renew(api.issued, "meter-1", days=30, now=now),
        "no certificate": b"hello",
    }[what]
    device.answer = lambda: bad
    device.renewal.work()
    assert device.names() == ["renewal-failed"]
    assert device.folder.certificate.read_bytes() == before


def test_the_child_says_what_is_wrong_and_ends_when_nobody_waits_for_it(api: Api, tmp_path: Path) -> None:
    device = Device(api, tmp_path)
    with pytest.raises(EnrolmentError, match="cannot be read"):
        certificate.ask(tmp_path, "install", b"nothing")
    with pytest.raises(UnavailableError, match="no answer"):
        certificate.ask(tmp_path, "fetch", give_up=lambda: True)
    folder = device.folder
    folder.certificate.write_bytes(b"")
    with pytest.raises(ConfigError, match="enrol this device again"):
        certificate.ask(tmp_path, "show")
    device.renewal.work()  # logs it, and goes on
    assert device.names() == []


def test_a_refusal_is_in_the_coordinators_words(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(api, tmp_path)
    device.install(begins_days_ago=25, days=30)
    monkeypatch.setattr(api, "renew", lambda _header: (403, {"error": "this device is revoked"}))
    device.renewal.work()
    assert device.events == [("renewal-failed", {"reason": "the coordinator refused (403): this device is revoked",
                                                 "ends": device.events[0][1]["ends"]})]  # fmt: skip


@given(st.floats(0, 1e9), st.floats(1, 1e9))
def test_a_certificate_is_due_after_its_begin_and_before_its_end(begins: float, life: float) -> None:
    validity = Validity(begins, begins + life)
    assert validity.begins < validity.due <= validity.ends


@given(st.lists(st.floats(0, 1), max_size=60))
def test_pauses_are_never_shorter_than_half_a_minute_nor_longer_than_the_longest(jitters: list[float]) -> None:
    given_jitters = iter(jitters)
    pace, now = Pace(lambda: next(given_jitters)), 0.0
    for _ in jitters:
        assert pace.may_try(now)
        pause = pace.failed(now)
        assert renewal.PAUSE_S[0] / 2 <= pause <= renewal.PAUSE_S[1]
        assert not pace.may_try(now + pause * 0.99)
        now += pause
