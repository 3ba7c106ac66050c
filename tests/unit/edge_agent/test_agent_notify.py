"""Signs of life: what a service manager hears, and when a stuck worker silences them."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edge_agent import daemon
from edge_agent.liveness import Stopping
from edge_agent.notify import Notifier
from tests.fakes import agent_folder
from tests.fakes.agent_folder import Datagrams
from tests.fakes.broker_process import eventually


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fieldfare-{os.getpid()}-{tmp_path.name}"


@pytest.fixture
def manager(address: str) -> Iterator[Datagrams]:
    made = Datagrams(address)
    yield made
    made.close()


def test_the_manager_hears_each_word_once_and_the_watchdog_in_time(manager, address):
    notifier = Notifier(address, watchdog_s=20)
    notifier.ready()
    for now in (0.0, 1.0, 4.9, 5.0, 11.0):
        notifier.alive(now)
    notifier.status("serves\nthirds:1")
    notifier.status("serves\nthirds:1")
    notifier.stopping()
    words = [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1", b"WATCHDOG=1", b"STATUS=serves thirds:1", b"STOPPING=1"]
    assert manager.read() == words


def test_without_a_manager_or_after_it_went_nothing_happens(manager, address):
    Notifier().ready()
    notifier = Notifier(address, watchdog_s=1)
    manager.close()
    notifier.ready()
    notifier.alive(1.0)


def test_the_environment_names_the_manager_and_a_watchdog_of_another_process_is_not_ours():
    variables = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier.from_environment(variables).watchdog_s == 30
    assert Notifier.from_environment({**variables, "WATCHDOG_PID": "1"}).watchdog_s == 0
    assert Notifier.from_environment({**variables, "WATCHDOG_USEC": "soon"}).watchdog_s == 0
    assert Notifier.from_environment({}).watchdog_s == 0


def _in_thread(name: str, work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work, name=name)
    thread.start()
    thread.join()


def test_a_worker_that_looks_lives_and_one_that_does_not_is_stuck():
    clock = Clock()
    stopping = Stopping(patience_s=10, clock=clock)
    with stopping.watched():
        name = threading.current_thread().name
        clock.now = 9
        assert not stopping.stuck()
        stopping.is_set()
        clock.now = 18
        assert not stopping.stuck()
        clock.now = 20
        assert stopping.stuck() == [name]
        stopping.wait(0.001)
        assert not stopping.stuck()
    clock.now = 100
    assert not stopping.stuck()


def test_waiting_for_work_is_declared_and_so_is_a_long_step():
    clock = Clock()
    stopping = Stopping(patience_s=10, clock=clock)
    with stopping.watched():
        with stopping.resting():
            clock.now = 1e6
            assert not stopping.stuck()
        with stopping.patient(100):
            clock.now += 109
            assert not stopping.stuck()
            clock.now += 2
            assert stopping.stuck()
        assert not stopping.stuck()


def test_a_worker_whose_thread_died_stays_stuck_and_threads_of_others_are_none_of_it():
    clock = Clock()
    stopping = Stopping(patience_s=10, clock=clock)

    def die() -> None:
        with suppress(SystemExit), stopping.watched():
            sys.exit()

    _in_thread("update", die)
    _in_thread("an app's", stopping.is_set)
    clock.now = 11
    assert stopping.stuck() == ["update"]


def test_a_stuck_worker_starves_the_watchdog_while_the_loop_goes_on(tmp_path, monkeypatch):
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "coordinator")
    manager = Datagrams(str(tmp_path / "notify"))
    agent = daemon.Agent(folder, notifier=Notifier(str(tmp_path / "notify"), watchdog_s=0.1))
    free, blocked = threading.Event(), threading.Event()

    def block() -> bool:
        blocked.set()
        free.wait(60)
        return False

    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        assert eventually(lambda: manager.read().count(b"WATCHDOG=1") > 2)
        monkeypatch.setattr(agent._monitor, "tick", block)
        assert eventually(blocked.is_set)
        agent._stopping._patience_s = -1e6
        agent._stopping._due["infer"] = 0.0
        assert eventually(lambda: agent._vitals._stuck == ["infer"])
        manager.read()
        manager.got.clear()
        assert not eventually(lambda: b"WATCHDOG=1" in manager.read(), 0.6)
    finally:
        free.set()
        agent.stop()
        thread.join()
    assert b"STOPPING=1" in manager.read()
    manager.close()


@pytest.mark.slow
def test_a_process_says_that_it_is_ready_and_alive_and_that_it_ends(tmp_path):
    folder = agent_folder.enrolled(tmp_path / "agent", tmp_path / "coordinator")
    manager, journal = Datagrams(str(tmp_path / "notify")), tmp_path / "stderr"
    variables = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    command = [sys.executable, "-m", "edge_agent", "run", "--state", str(folder.root), "--log", "json", "--verbose"]
    with journal.open("wb") as log:
        process = subprocess.Popen(command, stderr=log, env=variables)
    try:
        assert eventually(lambda: manager.read().count(b"WATCHDOG=1") > 2, 60)
        assert manager.got[0] == b"READY=1"
        assert b"STATUS=serves nothing yet, not connected" in manager.got
    finally:
        process.terminate()
        assert process.wait(30) == 0, journal.read_text()
    assert manager.read()[-1] == b"STOPPING=1"
    manager.close()
    assert '"event":"started"' in journal.read_text()
