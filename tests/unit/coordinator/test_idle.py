"""A coordinator that has nothing to do writes nothing."""

import sqlite3
from pathlib import Path

from coordinator import app, setup
from coordinator.jobs.runner import Runner
from tests.fakes import round_state


def test_loops_without_news_leave_the_database_alone(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = setup.init(state)
    services = app.compose(state)
    runner = Runner(services.storage, state, max_jobs=made.max_jobs)
    sha256 = round_state.register(services.storage)
    round_state.add_devices(services.storage, sha256, "a", "b")
    watcher = sqlite3.connect(state / "coordinator.sqlite")

    def version() -> int:
        return int(watcher.execute("PRAGMA data_version").fetchone()[0])

    def tick(now: float) -> None:
        runner.tick()
        services.signing.tick(now)
        services.rollouts.tick(now)
        services.rounds.tick(now)
        services.monitoring.tick(now)
        services.gateway._core.tick(now)[1]()

    tick(0.0)
    before = version()
    for number in range(1, 50):
        tick(number * 100.0)
    assert version() == before
    services.fleet.add("c")
    assert version() != before
    services.storage.engine.dispose()
    watcher.close()
