from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import update

from contract.errors import ProfileError
from coordinator.config import Config, Drift, Policy
from coordinator.errors import InvalidError, NotFoundError
from coordinator.fleet.tables import devices
from coordinator.monitoring import windows
from coordinator.monitoring.policy import RunOnCohort
from coordinator.monitoring.service import Monitoring
from coordinator.monitoring.windows import Window
from coordinator.rounds import runs
from coordinator.storage import Storage
from tests.fakes import round_state
from tests.fakes.round_state import MODEL, add_devices, register, rounds, window

DRIFT = Drift(baseline_samples=200, window_samples=200, interval_s=10.0)


@pytest.fixture
def storage(tmp_path: Path, database: str) -> Iterator[Storage]:
    opened = round_state.open_storage(tmp_path, database)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def bundle(storage: Storage) -> str:
    sha256 = register(storage)
    add_devices(storage, sha256, "a", "b", "c", "d")
    return sha256


def monitoring(storage: Storage, *, smallest: int = 2, policy: Policy | None = None) -> Monitoring:
    policy = policy or Policy()
    config = Config(api_port=1, broker_port=2, smallest_cohort=smallest, drift=DRIFT, policy=policy)
    answer = RunOnCohort(rounds(storage, smallest=smallest), policy, window_samples=60)
    return Monitoring(storage, config, answer=answer, cohort=lambda _connection, text: text.split(","))


def feed(storage: Storage, service: Monitoring, bundle: str, shifts: dict[str, float], *, seed: int) -> None:
    for index, (device, shift) in enumerate(shifts.items()):
        for part in range(4):
            body = window(bundle, samples=50, seed=1000 * seed + 10 * index + part, shift=shift)
            with storage.engine.begin() as connection:
                service.on_profile_window(connection, device, body, now=float(seed))


CALM = {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}
SHIFTED = {**CALM, "a": 2.0, "b": 2.0}


def alerts(storage: Storage, service: Monitoring) -> list:
    with storage.engine.begin() as connection:
        return service.alerts(connection)


def test_a_calm_fleet_raises_no_alert(storage, bundle):
    service = monitoring(storage)
    for seed in range(1, 6):
        feed(storage, service, bundle, CALM, seed=seed)
        service.tick(now=100.0 * seed)
    assert alerts(storage, service) == []


def test_devices_that_shift_are_named_after_two_looks_with_statistic_and_p_value(storage, bundle):
    service = monitoring(storage)
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    assert alerts(storage, service) == []
    service.tick(now=110.0)
    (alert,) = alerts(storage, service)
    assert (alert.cohort, alert.model, alert.version, alert.state) == (["a", "b"], MODEL, 1, "open")
    assert alert.feature in {"brightness", "contrast"}
    assert alert.statistic > DRIFT.materiality
    assert alert.p_value < 1e-6


def test_an_alert_is_not_repeated(storage, bundle):
    service = monitoring(storage)
    feed(storage, service, bundle, CALM, seed=1)
    for seed in range(2, 6):
        feed(storage, service, bundle, SHIFTED, seed=seed)
        service.tick(now=100.0 * seed)
    assert len(alerts(storage, service)) == 1
    fresh = monitoring(storage)  # a coordinator that was killed and started again
    fresh.tick(now=1_000.0)
    fresh.tick(now=1_010.0)
    assert len(alerts(storage, fresh)) == 1


def test_a_cohort_that_still_grows_is_waited_for(storage, bundle):
    service = monitoring(storage)
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    feed(storage, service, bundle, {"c": 2.0}, seed=3)
    service.tick(now=110.0)
    assert alerts(storage, service) == []
    service.tick(now=120.0)
    assert [alert.cohort for alert in alerts(storage, service)] == [["a", "b", "c"]]


def test_looks_are_no_closer_than_the_interval(storage, bundle):
    service = monitoring(storage)
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    for now in (100.0, 105.0, 109.0):
        service.tick(now)
    assert alerts(storage, service) == []


def test_too_few_drifting_devices_are_not_reported(storage, bundle):
    service = monitoring(storage, smallest=3)
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    service.tick(now=110.0)
    assert alerts(storage, service) == []
    with storage.engine.begin() as connection:
        found = service.report(connection, MODEL)
    assert found["drifting"] == {"tested": 4, "suppressed": "fewer than 3 devices drift"}


def test_the_policy_starts_a_run_on_the_cohort_and_the_alert_names_it(storage, bundle):
    service = monitoring(storage, policy=Policy(action="run", rounds=3, epochs=1))
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    service.tick(now=110.0)
    (alert,) = alerts(storage, service)
    with storage.engine.begin() as connection:
        (run,) = rounds(storage).every(connection)
    assert (alert.state, alert.run, run.alert) == ("answered", run.id, alert.id)
    assert (run.cohort, run.bundle_sha256, run.config.rounds) == (["a", "b"], bundle, 3)


def test_an_alert_stays_open_where_no_run_can_start(storage, bundle):
    with storage.engine.begin() as connection:
        rounds(storage).launch_query(connection, model=MODEL, cohort="c,d", settings={}, now=1.0)
    service = monitoring(storage, policy=Policy(action="run"))
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    service.tick(now=110.0)
    assert [alert.state for alert in alerts(storage, service)] == ["open"]


def end_runs(storage: Storage, state: str, now: float) -> None:
    with storage.engine.begin() as connection:
        for run in rounds(storage).every(connection):
            runs.finish(connection, run.id, state, now=now)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_alert_that_had_to_wait_is_answered_when_the_other_run_has_ended(storage, bundle, restarted):
    test_an_alert_stays_open_where_no_run_can_start(storage, bundle)
    service = monitoring(storage, policy=Policy(action="run"))
    service.tick(now=120.0)
    assert [alert.state for alert in alerts(storage, service)] == ["open"]
    end_runs(storage, "succeeded", now=125.0)
    if restarted:
        service = monitoring(storage, policy=Policy(action="run"))
    service.tick(now=130.0)
    service.tick(now=140.0)
    (alert,) = alerts(storage, service)
    with storage.engine.begin() as connection:
        (run,) = [run for run in rounds(storage).every(connection) if run.alert == alert.id]
    assert (alert.state, alert.run, run.cohort) == ("answered", run.id, ["a", "b"])


def test_an_alert_is_not_answered_on_devices_that_have_another_bundle_by_now(storage, bundle):
    test_an_alert_stays_open_where_no_run_can_start(storage, bundle)
    end_runs(storage, "succeeded", now=115.0)
    with storage.engine.begin() as connection:
        connection.execute(update(devices).where(devices.c.name == "a").values(hello=None))
    service = monitoring(storage, policy=Policy(action="run"))
    service.tick(now=120.0)
    assert [alert.state for alert in alerts(storage, service)] == ["open"]


@pytest.mark.parametrize(("state", "again"), [("failed", True), ("cancelled", True), ("succeeded", False)])
def test_an_alert_whose_run_came_to_nothing_is_raised_again_after_a_pause(storage, bundle, state, again):
    service = monitoring(storage, policy=Policy(action="run", retry_s=100.0))
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    service.tick(now=100.0)
    service.tick(now=110.0)
    end_runs(storage, state, now=150.0)
    for now, expected in ((200.0, 1), (260.0, 2 if again else 1)):
        feed(storage, service, bundle, {"a": 2.0, "b": 2.0}, seed=3)
        service.tick(now=now)
        service.tick(now=now + 10.0)
        assert len(alerts(storage, service)) == expected
    assert all(alert.state == "answered" for alert in alerts(storage, service))


def test_devices_that_always_differed_do_not_drift_but_are_heterogeneous(storage, bundle):
    service = monitoring(storage)
    different = {"a": -2.0, "b": 2.0, "c": -2.0, "d": 2.0}
    feed(storage, service, bundle, different, seed=1)
    feed(storage, service, bundle, different, seed=2)
    service.tick(now=100.0)
    service.tick(now=110.0)
    assert alerts(storage, service) == []
    with storage.engine.begin() as connection:
        found = service.report(connection, MODEL)
    assert max(each["heterogeneity"] for each in found["features"]) > 0.2


def test_the_report_pools_the_cohort_against_the_bundles_reference(storage, bundle):
    service = monitoring(storage)
    feed(storage, service, bundle, CALM, seed=1)
    feed(storage, service, bundle, SHIFTED, seed=2)
    with storage.engine.begin() as connection:
        found = service.report(connection, MODEL, version=1)
        shifted = service.report(connection, MODEL, cohort="a,b")
        calm = service.report(connection, MODEL, cohort="c,d")
        late = service.report(connection, MODEL, since=3.0)
    assert (found["devices"], found["samples"], found["suppressed"]) == (4, 800, "")
    assert [each["device"] for each in found["drifting"]["devices"]] == ["a", "b"]
    assert found["drifting"]["share"] == 0.5
    assert 0 < found["estimated_accuracy"]["recent"] < 1
    psi = [{each["feature"]: each["psi"] for each in one["features"]}["brightness"] for one in (shifted, calm)]
    assert psi[0] > psi[1]
    assert late["suppressed"].startswith("0 devices")


def test_a_report_on_what_nobody_sent_says_so(storage, bundle):
    with storage.engine.begin() as connection, pytest.raises(NotFoundError, match="no device has sent"):
        monitoring(storage).report(connection, MODEL)


def test_windows_that_cannot_be_are_refused(storage, bundle):
    service = monitoring(storage)
    good = window(bundle, samples=10, seed=0)
    bad_counts = msgspec.structs.replace(good.counts, samples=11)
    for bad, error in (
        (msgspec.structs.replace(good, bundle_sha256="0" * 64), NotFoundError),
        (msgspec.structs.replace(good, profile_digest="0" * 64), ProfileError),
        (msgspec.structs.replace(good, counts=bad_counts), ProfileError),
        (msgspec.structs.replace(good, started_at=2.0), InvalidError),
        (msgspec.structs.replace(good, ended_at=float("nan")), InvalidError),
    ):
        with storage.engine.begin() as connection, pytest.raises(error):
            service.on_profile_window(connection, "a", bad, now=1.0)


def test_baseline_and_recent_windows_do_not_overlap():
    rows = [Window(index, 50) for index in range(10)]
    assert windows.split(rows, baseline_samples=120, window_samples=100) == windows.Split([0, 1, 2], [8, 9])
    assert windows.split(rows[:4], baseline_samples=120, window_samples=100) is None
    assert windows.split(rows[:2], baseline_samples=120, window_samples=1) is None
