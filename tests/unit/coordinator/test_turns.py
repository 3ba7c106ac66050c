"""What two callers do at the same moment, on both databases: API, loops and gateway are threads beside each other."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.errors import CallerError
from coordinator.fleet import service as fleet_service
from coordinator.sql import insert_once
from tests.fakes import round_state
from tests.fakes.broker_process import device_key_and_csr
from tests.fakes.fleet_site import Site
from tests.fakes.round_state import MODEL, add_devices, register, rounds


@pytest.fixture
def site(tmp_path: Path, database: str) -> Iterator[Site]:
    made = Site(tmp_path, database=database)
    yield made
    made.close()


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Run all at the same moment; what each returned, or the CallerError that it raised."""
    start, results = threading.Barrier(len(calls)), [None] * len(calls)

    def run(index: int, call: Callable[[], Any]) -> None:
        start.wait()
        try:
            results[index] = call()
        except CallerError as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def beside(call: Callable[[], Any], *, wait_s: float = 0.5) -> threading.Thread:
    """Begin a call in a thread and give it time to end, if nothing holds it up; a CallerError is an end too."""

    def run() -> None:
        with contextlib.suppress(CallerError):
            call()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(wait_s)
    return thread


def test_a_token_that_several_devices_show_at_once_enrols_one(site: Site) -> None:
    for attempt in range(5):
        name = f"meter-{attempt}"
        token = site.fleet.add(name).token
        requests = [device_key_and_csr(name)[1] for _ in range(4)]
        made = at_once(*(functools.partial(site.fleet.enrol, token, csr, "") for csr in requests))
        assert sum(not isinstance(one, CallerError) for one in made) == 1


def test_a_device_that_enrols_while_it_is_added_again_enrols_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    token, enrolled = site.fleet.add("meter-1").token, []
    threads: list[threading.Thread] = []

    def enrol(shown: str) -> None:
        enrolled.append(site.fleet.enrol(shown, device_key_and_csr("meter-1")[1], ""))

    def slow(connection: Any, table: Any, row: Any) -> bool:
        found = insert_once(connection, table, row)
        threads.append(beside(lambda: enrol(token)))
        return found

    monkeypatch.setattr(fleet_service, "insert_once", slow)
    (added,) = at_once(lambda: site.fleet.add("meter-1"))
    threads[0].join()
    if not isinstance(added, CallerError):
        beside(lambda: enrol(added.token)).join()
    assert len(enrolled) == 1


def test_two_rollouts_that_start_at_once_do_not_share_devices(site: Site) -> None:
    site.begin()
    site.enrol("meter-1")
    refs = [site.register(version) for version in (1, 2)]
    made = at_once(*(functools.partial(site.rollouts.start, ref.sha256) for ref in refs))
    assert sum(not isinstance(one, CallerError) for one in made) == 1


def test_a_rollout_that_is_aborted_while_it_advances_stays_aborted(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.begin()
    site.enrol("meter-1")
    rollout = site.rollouts.start(site.register().sha256)
    site.sign()
    threads: list[threading.Thread] = []
    look = site.signing.state

    def slow(connection: Any, sha256: str) -> Any:
        if not threads:
            threads.append(beside(lambda: site.rollouts.abort(rollout.id)))
        return look(connection, sha256)

    monkeypatch.setattr(site.signing, "state", slow)
    site.rollouts.tick(site.now)
    threads[0].join()
    assert site.rollouts.get(rollout.id).state == "aborted"


def test_a_timestamp_that_is_renewed_while_a_bundle_is_signed_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.begin()
    site.register()
    beside_it: list[Any] = []
    look = site.signing.metadata

    def slow(connection: Any, name: str) -> Any:
        if name == "timestamp.json" and not beside_it:
            beside_it.append(1)
            beside_it[:] = [beside(lambda: site.signing.tick(site.now + 20 * 3600))]
        return look(connection, name)

    monkeypatch.setattr(site.signing, "metadata", slow)
    assert site.sign() == 1
    beside_it[0].join()
    with site.engine.begin() as connection:
        names = {number for number in range(1, 9) if look(connection, f"{number}.snapshot.json")}
    assert names == {1, 2, 3}


def test_two_runs_that_are_launched_at_once_on_a_bundle_are_one(tmp_path: Path, database: str) -> None:
    storage = round_state.open_storage(tmp_path, database)
    sha256 = register(storage)
    add_devices(storage, sha256, "a", "b")

    def launch() -> Any:
        with storage.engine.begin() as connection:
            return rounds(storage).launch_query(connection, model=MODEL, cohort="a,b", settings={}, now=0.0)

    made = at_once(*[launch] * 4)
    storage.engine.dispose()
    assert sum(not isinstance(one, CallerError) for one in made) == 1
