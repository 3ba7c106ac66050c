import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator import records, setup
from coordinator.errors import ConflictError, InvalidError, NotFoundError
from coordinator.jobs import processes
from coordinator.jobs.runner import Runner
from coordinator.jobs.service import Jobs
from coordinator.jobs.worker import Record
from coordinator.storage import Blobs, Storage, metadata, open_engine

KINDS = """
import os, time

def add(context):
    context.report(0.5, "adding")
    print("two numbers came")
    return {"sum": context.spec["a"] + context.spec["b"], "resumed": context.resumed}

def fail(context):
    raise ValueError("the data is not there")

def die(context):
    os._exit(9)

def wait(context):
    (context.folder / f"began-{os.getpid()}").touch()
    context.report(0.1, "waiting")
    while not (context.folder / "go").exists():
        time.sleep(0.02)
    return {"resumed": context.resumed}

def stubborn(context):
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return wait(context)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Storage]:
    engine = open_engine(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    metadata.create_all(engine)
    yield Storage(engine, Blobs(f"file://{tmp_path / 'blobs'}"))
    engine.dispose()


def test_a_job_waits_until_a_worker_claims_it(storage: Storage, tmp_path: Path) -> None:
    jobs = Jobs(storage, tmp_path)
    job = jobs.create("train", {"epochs": 3})
    assert (job.state, job.attempt, job.progress) == ("queued", 0, 0.0)
    assert Record(storage.engine, job.id).claim(1.0) == ("train", {"epochs": 3}, False)
    assert jobs.get(job.id).state == "running"
    assert Record(storage.engine, job.id).claim(1.0) is None


def test_progress_and_outcome_are_written_by_the_worker(storage: Storage, tmp_path: Path) -> None:
    jobs = Jobs(storage, tmp_path)
    record = Record(storage.engine, jobs.create("train", {}, id="a").id)
    record.claim(1.0)
    record.report(0.25, "epoch 1")
    assert (jobs.get("a").progress, jobs.get("a").message) == (0.25, "epoch 1")
    record.report(0.3, "epoch 1")  # too soon after the last, with nothing new to say
    assert jobs.get("a").progress == 0.25
    record.report(7.0, "done")
    record.end("succeeded", result={"version": 1})
    record.report(0.1, "a word after the end")
    ended = jobs.get("a")
    assert (ended.state, ended.progress, ended.message, ended.result) == ("succeeded", 1.0, "done", {"version": 1})


def test_the_same_job_is_queued_once_and_another_under_its_id_is_refused(storage: Storage, tmp_path: Path) -> None:
    jobs = Jobs(storage, tmp_path)
    first = jobs.create("train", {"a": 1, "b": 2}, id="one")
    assert jobs.create("train", {"b": 2, "a": 1}, id="one") == first
    with pytest.raises(ConflictError):
        jobs.create("train", {"a": 2}, id="one")


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", "a" * 65])
def test_an_id_that_names_no_folder_is_refused(storage: Storage, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidError):
        Jobs(storage, tmp_path).create("train", {}, id=name)


def test_a_waiting_job_is_cancelled_at_once_and_an_ended_one_stays(storage: Storage, tmp_path: Path) -> None:
    jobs = Jobs(storage, tmp_path)
    jobs.create("train", {}, id="a")
    assert jobs.cancel("a").state == "cancelled"
    assert jobs.cancel("a").state == "cancelled"
    with pytest.raises(NotFoundError):
        jobs.cancel("b")


def test_of_a_long_log_the_end_is_shown(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.jobs.service.LOG_BYTES", 10)
    jobs = Jobs(storage, tmp_path)
    jobs.create("train", {}, id="a")
    assert jobs.log("a") == ""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "log").write_text("0123456789the end...")
    assert jobs.log("a") == "the end..."[-10:]


def test_a_process_is_known_by_its_number_and_its_start() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    first = processes.started(child.pid)
    assert first is not None
    assert first == processes.started(child.pid)
    assert first != processes.started(os.getpid())
    child.kill()
    while processes.started(child.pid) is not None:  # dead, although nobody has waited for it yet
        time.sleep(0.01)
    child.communicate()


class Bench:
    """A state folder with job kinds of its own, and a runner over it that can be replaced as if it was killed."""

    def __init__(self, folder: Path, *, max_jobs: int = 2) -> None:
        self.state = folder / "state"
        config = setup.init(self.state)
        self.storage = Storage(open_engine(config.database_url(self.state)), Blobs(config.blobs_url(self.state)))
        self.jobs = Jobs(self.storage, self.state / "jobs")
        self.max_jobs = max_jobs
        self.runners: list[Runner] = []
        self.restart()

    def restart(self) -> None:
        self.runners.append(Runner(self.storage, self.state, max_jobs=self.max_jobs))

    def until(self, job: str, *states: str, timeout_s: float = 60.0) -> records.Job:
        deadline = time.monotonic() + timeout_s
        while True:
            self.runners[-1].tick()
            found = self.jobs.get(job)
            if found.state in states:
                return found
            assert time.monotonic() < deadline, f"{found}\n{self.jobs.log(job)}"
            time.sleep(0.05)

    def process(self, job: str) -> int:
        """Number of the process of a `wait` job that runs."""
        folder = self.state / "jobs" / job
        deadline = time.monotonic() + 60
        while True:
            self.runners[-1].tick()
            for file in folder.glob("began-*"):
                pid = int(file.name.removeprefix("began-"))
                file.unlink()
                return pid
            assert time.monotonic() < deadline, self.jobs.log(job)
            time.sleep(0.05)

    def go(self, job: str) -> None:
        (self.state / "jobs" / job / "go").touch()

    def close(self) -> None:
        for runner in self.runners:
            runner.stop()
        self.storage.engine.dispose()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    site = tmp_path / "site"
    offered = site / "jobs_for_tests-1.dist-info"
    offered.mkdir(parents=True)
    (offered / "METADATA").write_text("Metadata-Version: 2.1\nName: jobs-for-tests\nVersion: 1\n")
    kinds = ["add", "fail", "die", "wait", "stubborn"]
    lines = [f"{kind} = jobs_for_tests:{kind}" for kind in kinds] + ["absent = jobs_that_are_not_there:run"]
    (offered / "entry_points.txt").write_text("\n".join(["[fieldfare.jobs]", *lines]) + "\n")
    (site / "jobs_for_tests.py").write_text(KINDS)
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", f"{site}{os.pathsep}{root}")
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.slow
def test_a_job_runs_in_its_own_process_and_its_result_is_kept(bench: Bench) -> None:
    bench.jobs.create("add", {"a": 2, "b": 3}, id="sum")
    done = bench.until("sum", "succeeded")
    assert done.result == {"sum": 5, "resumed": False}
    assert (done.progress, done.message, done.attempt) == (1.0, "adding", 1)
    assert "two numbers came" in bench.jobs.log("sum")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("fail", "ValueError: the data is not there"),
        ("absent", "needs a package that is not installed: jobs_that_are_not_there"),
        ("unheard-of", "no installed package offers the job kind 'unheard-of'"),
    ],
)
def test_a_job_that_cannot_succeed_fails_with_a_sentence(bench: Bench, kind: str, sentence: str) -> None:
    bench.jobs.create(kind, {}, id="a")
    failed = bench.until("a", "failed")
    assert sentence in (failed.error or "")
    assert failed.attempt == 1


@pytest.mark.slow
def test_a_job_whose_process_dies_is_tried_three_times(bench: Bench) -> None:
    bench.jobs.create("die", {}, id="a")
    failed = bench.until("a", "failed")
    assert failed.attempt == 3
    assert "died 3 times" in (failed.error or "")


@pytest.mark.slow
def test_a_coordinator_that_was_killed_finds_its_jobs_running(bench: Bench) -> None:
    bench.jobs.create("wait", {}, id="a")
    pid = bench.process("a")
    bench.restart()
    bench.runners[-1].tick()
    assert bench.jobs.get("a").attempt == 1
    bench.go("a")
    assert bench.until("a", "succeeded").result == {"resumed": False}
    assert bench.runners[0]._children["a"].pid == pid


@pytest.mark.slow
def test_a_job_killed_while_the_coordinator_was_away_is_resumed(bench: Bench) -> None:
    bench.jobs.create("wait", {}, id="a")
    os.killpg(bench.process("a"), signal.SIGKILL)
    bench.runners[0]._children["a"].wait()
    bench.restart()
    bench.process("a")
    bench.go("a")
    done = bench.until("a", "succeeded")
    assert (done.result, done.attempt) == ({"resumed": True}, 2)


@pytest.mark.slow
def test_a_coordinator_that_ends_ends_its_jobs_and_resumes_them_at_its_next_start(bench: Bench) -> None:
    bench.jobs.create("wait", {}, id="a")
    pid = bench.process("a")
    bench.runners[0].stop()
    assert processes.started(pid) is None
    assert bench.jobs.get("a").state == "queued"
    bench.restart()
    bench.process("a")
    bench.go("a")
    assert bench.until("a", "succeeded").result == {"resumed": True}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wait", "stubborn"])
def test_a_cancelled_job_ends_even_if_it_will_not(bench: Bench, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.jobs.runner.KILL_AFTER_S", 0.5)
    bench.jobs.create(kind, {}, id="a")
    pid = bench.process("a")
    bench.jobs.cancel("a")
    assert bench.until("a", "cancelled", timeout_s=10).finished_at is not None
    assert processes.started(pid) is None


@pytest.mark.slow
def test_no_more_jobs_run_side_by_side_than_may(bench: Bench) -> None:
    for name in ("a", "b", "c"):
        bench.jobs.create("wait", {}, id=name)
    bench.process("a")
    bench.process("b")
    for _ in range(5):
        bench.runners[-1].tick()
    assert bench.jobs.get("c").state == "queued"
    bench.go("a")
    bench.until("a", "succeeded")
    bench.until("c", "running")


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_a_worker_that_cannot_even_begin_fails_its_job_and_is_not_tried_for_ever(
    bench: Bench, resumed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.jobs.create("wait", {}, id="a")
    if resumed:
        os.killpg(bench.process("a"), signal.SIGKILL)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    failed = bench.until("a", "failed")
    assert "status 1 before it began" in (failed.error or "")
    assert failed.attempt == int(resumed)
