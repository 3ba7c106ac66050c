"""Whatever is killed (SIGKILL) at whatever moment and started again, nothing is lost and the end is the same."""

import time

import psutil
import pytest

from coordinator.client import Rollout, Run
from fieldfare.demo.settings import MODEL
from fieldfare.demo.stations import Stations

pytestmark = pytest.mark.slow
SETTLED_S = 3.0  # long enough for a second count of the same window to arrive


def finished_rollout(site: Stations, rollout: Rollout) -> Rollout:
    def look() -> Rollout | None:
        now = site.client.rollout(rollout.id)
        return now if now.state in {"done", "failed", "aborted"} else None

    return site._until(look, "the rollout", timeout_s=120)


def offered(site: Stations, rollout: Rollout) -> bool | None:
    return any(d.state != "pending" for d in site.client.rollout(rollout.id).devices) or None


def counted(site: Stations, version: int = 1) -> int:
    report = site._counted(version, 1)
    return report["counted"] if report else 0


@pytest.mark.parametrize("victim", ["coordinator", "broker", "signer"])
def test_a_process_killed_in_the_middle_of_a_rollout_does_not_change_its_end(site: Stations, victim: str) -> None:
    rollout = site.client.start_rollout(site._bundles[1].sha256)
    if victim != "signer":
        site._until(lambda: offered(site, rollout), "an offer", timeout_s=60)
    site._processes.kill(victim)
    site._processes.restart(victim)

    done = finished_rollout(site, rollout)
    assert done.state == "done"
    assert {device.device: device.state for device in done.devices} == {
        f"meter-{number}": "activated" for number in range(1, 5)
    }
    assert sorted(device.wave for device in done.devices) == [0, 1, 1, 1]


def test_an_agent_killed_while_it_pulls_a_bundle_activates_it_after_its_restart(site: Stations) -> None:
    rollout = site.client.start_rollout(site._bundles[1].sha256, waves=[4])
    site._until(lambda: offered(site, rollout), "an offer", timeout_s=60)
    for name in ("meter-1", "meter-2"):
        site._processes.kill(name)
    for name in ("meter-1", "meter-2"):
        site._processes.restart(name)

    assert finished_rollout(site, rollout).state == "done"


def test_an_agent_killed_while_it_counts_counts_every_sample_once(site: Stations) -> None:
    site._roll_out(site._bundles[1], "all")
    for lens in site._cameras.values():
        lens.capture()
        lens.capture()
    expected = 2 * sum(lens.size for lens in site._cameras.values())
    site._until(lambda: counted(site) > 0 or None, "the first windows", timeout_s=60)
    for name in ("meter-2", "meter-3"):
        site._processes.kill(name)
    site._processes.kill("coordinator")
    for name in ("coordinator", "meter-2", "meter-3"):
        site._processes.restart(name)

    site._until(lambda: counted(site) >= expected or None, "all windows", timeout_s=90)
    time.sleep(SETTLED_S)
    assert counted(site) == expected


def test_a_run_goes_on_where_it_was_when_coordinator_run_and_an_agent_are_killed(site: Stations) -> None:
    site._roll_out(site._bundles[1], "all")
    for lens in site._cameras.values():
        lens.capture()
    site._until(
        lambda: all((d.hello or {}).get("samples") for d in site.client.devices()) or None, "samples", timeout_s=60
    )
    run = site.client.launch_run(MODEL, settings={"rounds": 4, "epochs": 2, "round_timeout_s": 60.0})
    site._until(lambda: len(site.client.run(run.id).rounds) or None, "the first round", timeout_s=90)
    before = [r for r in site.client.run(run.id).rounds if r.kind == "train"]
    site._processes.kill("coordinator")
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if "coordinator.jobs.worker" in command and str(site._settings.state) in command:
            process.kill()
    site._processes.kill("meter-1")
    for name in ("coordinator", "meter-1"):
        site._processes.restart(name)

    def look() -> Run | None:
        now = site.client.run(run.id)
        return now if now.state in {"succeeded", "failed", "cancelled"} else None

    done = site._until(look, "the run", timeout_s=180)
    assert done.state == "succeeded", done.error
    trained = [r for r in done.rounds if r.kind == "train"]
    assert [r.round for r in trained] == [1, 2, 3, 4]
    assert trained[: len(before)] == before  # a committed round is never made again
    assert site.client.get_version(MODEL, int(done.version or 0)).parents == [1]
    assert site.client.models()[0].versions == [1, 2]
