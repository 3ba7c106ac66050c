"""The gateway's socket side, without a broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.deltas.service import Deltas
from coordinator.gateway.service import Gateway
from tests.fakes.fleet_site import Instructions, NoCommands, Site


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    site = Site(tmp_path)
    yield Gateway(
        site.config,
        tmp_path,
        storage=site.storage,
        fleet=site.fleet,
        signing=site.signing,
        handlers={},
        instructions=Instructions(),
        commands=NoCommands(),
        deltas=Deltas(site.storage, site.signing),
    )
    site.close()


class Flags:
    """Of a CONNACK."""

    def __init__(self, session_present: bool) -> None:
        self.session_present = session_present


class Accepted:
    """The code of a CONNACK."""

    is_failure = False


def test_a_reconnection_is_not_forgotten_when_the_database_fails_or_another_follows(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def reconnected(*, session_lost: bool) -> None:
        seen.append(session_lost)
        if len(seen) == 1:
            raise OSError("the disk is full")

    monkeypatch.setattr(gateway._core, "reconnected", reconnected)
    monkeypatch.setattr(gateway._client, "subscribe", lambda *_, **__: None)
    for present in (False, True):
        gateway._on_connect(gateway._client, None, Flags(present), Accepted(), None)
    with pytest.raises(OSError, match="full"):
        gateway.tick(0.0)
    gateway.tick(0.0)
    gateway.tick(0.0)
    assert seen == [True, True]
