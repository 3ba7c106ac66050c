"""Child processes of the demonstration: logs, deaths that are noticed, and an end that leaves none behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from fieldfare.demo import processes
from fieldfare.demo.errors import StationFailedError
from fieldfare.demo.processes import Processes

SLEEPER = """
import subprocess, sys, time, signal
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(0.2 if "brief" in sys.argv else 600)
sys.exit(3)
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    (tmp_path / "speaker.py").write_text(
        "import os, sys\nprint(os.environ['WORD'])\nsys.exit('the end: ' + sys.argv[1])"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def grandchild(running: Processes, name: str) -> int:
    deadline = time.monotonic() + 20
    while not (text := running.log(name).read_text()).endswith("\n"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(text.split()[-1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_on_the_way_out_nobody_is_left_not_even_a_grandchild(modules: Path) -> None:
    with Processes(modules / "logs") as running:
        running.start("one", "sleeper")
        running.start("two", "sleeper")
        pids = [grandchild(running, name) for name in ("one", "two")]
        running.check()
        assert all(alive(pid) for pid in pids)
    assert all(gone(pid) for pid in pids)


def test_one_that_does_not_want_to_end_is_killed(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.3)
    with Processes(modules / "logs") as running:
        running.start("one", "sleeper", "stubborn")
        pid = grandchild(running, "one")
    assert gone(pid)


def test_who_asks_twice_gets_an_end_at_once_and_still_nobody_is_left(modules: Path) -> None:
    def again(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, again)
    running = Processes(modules / "logs")
    try:
        running.start("one", "sleeper", "stubborn")
        pid = grandchild(running, "one")
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        begun = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            running.stop()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < processes.STOP_S / 2
    assert gone(pid)


def test_a_process_that_ended_is_named_with_its_log(modules: Path) -> None:
    with Processes(modules / "logs") as running:
        running.start("one", "sleeper", "brief")
        grandchild(running, "one")
        running._running["one"].wait(20)
        with pytest.raises(StationFailedError, match="'one' ended with status 3") as failed:
            running.check()
    assert failed.value.log == running.log("one")


def test_a_killed_process_is_started_again_as_it_was(modules: Path) -> None:
    with Processes(modules / "logs") as running:
        running.start("one", "sleeper")
        first = grandchild(running, "one")
        running.kill("one")
        running.restart("one")
        deadline = time.monotonic() + 20
        while grandchild(running, "one") == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        running.check()
        os.kill(first, signal.SIGKILL)  # the killed one could not take it along


def test_a_command_that_fails_is_told_by_what_it_said_last(modules: Path) -> None:
    log = modules / "speaker.log"
    with pytest.raises(StationFailedError, match="speaker now failed: the end: now") as failed:
        processes.run(log, "speaker", "now", environment={"WORD": "first"})
    assert failed.value.log == log
    assert log.read_text() == "first\nthe end: now\n"
