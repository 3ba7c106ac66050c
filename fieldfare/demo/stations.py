"""The nine stations of the loop, in the order of the design."""

import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tomli_w

from contract import tensors
from coordinator.client import FINISHED, Bundle, Client, ClientError, Job, JobFailedError, Rollout, Run
from fieldfare.demo import processes
from fieldfare.demo.captures import Camera
from fieldfare.demo.errors import StationFailedError
from fieldfare.demo.outcome import Evaluation, Outcome
from fieldfare.demo.screen import Screen
from fieldfare.demo.settings import AGENT, MODEL, SMALLEST_COHORT, Settings
from fieldfare.digits import camera, task

T = TypeVar("T")
ROLES = ("broker", "coordinator", "signer")
NOT_FOUND = 404
TEST_SEED = 10_000  # drift of the held-out images, other than any device's


class Stations:
    """Each method is one station; each fails with a StationFailedError that a person can read."""

    def __init__(self, settings: Settings, screen: Screen, children: processes.Processes, outcome: Outcome) -> None:
        """Work in `settings.folder`, with `children` as processes, and write down in `outcome` what happens."""
        self._settings = settings
        self._screen = screen
        self._processes = children
        self._outcome = outcome
        self._client: Client | None = None
        self._cameras: dict[str, Camera] = {}
        self._bundles: dict[int, Bundle] = {}

    @property
    def client(self) -> Client:
        """The coordinator's client, once the first station has made it."""
        if self._client is None:
            raise StationFailedError("the coordinator was not started")
        return self._client

    def start_coordinator(self) -> None:
        """Station 1: broker, coordinator and signer, each a process of its own."""
        settings, state = self._settings, str(self._settings.state)
        with self._screen.station(1, "Start a coordinator, a broker and a signer"):
            log = settings.folder / "logs" / "init.log"
            processes.run(log, "fieldfare", "serve", "--state", state, "--broker", settings.broker, "--init-only")
            _amend(settings.state / "coordinator.toml", settings.coordinator())
            for role in ROLES:
                self._processes.start(role, "fieldfare", "serve", "--state", state, "--role", role)
            self._client = Client.from_state(settings.state)
            self._until(lambda: self.client.healthy() or None, "the coordinator to answer", timeout_s=60)
            status = self.client.status()
            self._screen.fact(f"API at {self.client.url}, {settings.broker} broker, a client certificate for everyone")
            self._screen.fact(f"{status.devices.get('total', 0)} devices, {status.models} models: empty")

    def train(self) -> None:
        """Station 2: snapshot, transform, training, version 1."""
        with self._screen.station(2, "Take a data snapshot and train version 1"):
            job = self._job("train", {"task": MODEL, "model": MODEL, "options": self._options()}, "training")
            version = self.client.get_version(MODEL, int((job.result or {})["version"]))
            self._outcome.version_1 = msgspec.to_builtins(version)
            self._screen.fact(
                f"{MODEL}:{version.version}, test accuracy {version.metrics['test']['accuracy']:.3f}, "
                f"snapshot {str(version.snapshot_sha256)[:12]}"
            )

    def compress(self) -> None:
        """Station 3: variants, gate, bundle."""
        with self._screen.station(3, "Compress, measure, pick by a gate, build the bundle"):
            self._outcome.variants, self._bundles[1] = self._compress(1, ["int8", "pruned-clustered-int8"])
            self._outcome.bundle_1 = msgspec.to_builtins(self._bundles[1])

    def enrol(self) -> None:
        """Station 4: certificates for one-time tokens, and an agent process for each device."""
        with self._screen.station(4, f"Enrol {self._settings.devices} devices and start their agents"):
            shares = task.device_samples(self._settings.devices, self._settings.seed)
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(self._enrol, shares))
            for name, samples in shares.items():
                self._cameras[name] = Camera(self._settings.agent(name) / "source", samples)
                self._processes.start(name, "edge_agent", "run", "--state", str(self._settings.agent(name)))
            self._until(
                lambda: all(device.connected for device in self.client.devices()) or None,
                "every agent to connect",
                timeout_s=60,
            )
            sizes = ", ".join(f"{name} {camera_.size}" for name, camera_ in self._cameras.items())
            self._screen.fact(f"connected; images that stay on the devices: {sizes}")

    def roll_out(self) -> None:
        """Station 5: a canary, then the rest."""
        with self._screen.station(5, "Roll version 1 out in two waves"):
            self._roll_out(self._bundles[1], "all")

    def watch(self) -> None:
        """Station 6: inference on the devices, counters to the coordinator."""
        with self._screen.station(6, "Infer on the devices, count, and send counters only"):
            for lens in [*self._cameras.values(), *self._cameras.values()]:  # a baseline, and something to hold to it
                lens.capture()
            expected = 2 * sum(lens.size for lens in self._cameras.values())
            report = self._until(
                lambda: self._counted(1, expected), f"profile windows of {expected} inferences", timeout_s=60
            )
            self._outcome.drift_clean = report
            tested = report["drifting"]
            self._screen.fact(
                f"{report['counted']} inferences counted; {tested['tested']} devices held to their own first samples, "
                f"{len(tested.get('devices', []))} drift"
            )

    def drift(self) -> None:
        """Station 7: some cameras drift, the coordinator notices."""
        drifting = self._settings.drifting
        with self._screen.station(7, f"Let {len(drifting)} cameras drift: turned, out of focus, less contrast"):
            self._capture_drifted(seed=1)
            alert = self._until(lambda: next(iter(self.client.alerts()), None), "the drift to be noticed", timeout_s=60)
            self._outcome.alert = msgspec.to_builtins(alert)
            self._screen.fact(
                f"alert: {alert.feature}, PSI {alert.statistic:.2f}, p = {alert.p_value:.1e}, "
                f"cohort {', '.join(alert.cohort)} (smallest that may be reported here: {SMALLEST_COHORT})"
            )
            if sorted(alert.cohort) != sorted(drifting):
                raise StationFailedError(f"the alert names {sorted(alert.cohort)}, but {sorted(drifting)} drifted")
            self._outcome.drift_after = self.client.drift(MODEL, version=1)

    def federate(self) -> None:
        """Station 8: the alert's run, version 2, its rollout."""
        with self._screen.station(8, "Answer the alert with a federated run, and roll version 2 out"):
            run = self._run_of_alert()
            self._outcome.run = msgspec.to_builtins(run)
            version = self.client.get_version(MODEL, int(run.version or 0))
            self._outcome.version_2 = msgspec.to_builtins(version)
            trained = [step for step in run.rounds if step.kind == "train"]
            before, after = run.rounds[0].metrics["loss"], run.rounds[-1].metrics["loss"]
            self._screen.fact(
                f"{len(trained)} rounds of FedAvg made {MODEL}:{version.version}; on the devices' own samples the "
                f"loss went from {before:.2f} to {after:.2f}"
            )
            _, self._bundles[2] = self._compress(version.version, ["int8"])
            self._outcome.bundle_2 = msgspec.to_builtins(self._bundles[2])
            self._roll_out(self._bundles[2], f"name={','.join(self._settings.drifting)}")

    def prove(self) -> None:
        """Station 9: both versions on the same held-out images, clean and drifted, and the new baseline."""
        with self._screen.station(9, "Prove the recovery"):
            version = self._bundles[2].version
            for seed in (2, 3):  # a baseline under version 2, and something to hold to it
                self._capture_drifted(seed)
            expected = 2 * sum(self._cameras[name].size for name in self._settings.drifting)
            self._outcome.drift_rebased = self._until(
                lambda: self._counted(version, expected), "profile windows of version 2", timeout_s=60
            )
            data = task.load_data(self._settings.devices, self._settings.seed)
            held_out = data["part"] == "test"
            images, classes = data["x"][held_out], data["y"][held_out]
            self._outcome.clean = self._evaluate(images, classes)
            self._outcome.drifted = self._evaluate(camera.drift(images, TEST_SEED), classes)

    def _options(self) -> dict[str, int]:
        return {"devices": self._settings.devices, "seed": self._settings.seed}

    def _enrol(self, name: str) -> None:
        folder = self._settings.agent(name)
        folder.mkdir(mode=0o700)
        token = self.client.add_device(name, {"site": "north" if name in self._settings.drifting else "south"})
        processes.run(
            self._settings.folder / "logs" / f"{name}.log",
            *("edge_agent", "enrol", "--state", str(folder), "--device", name, "--url", self.client.url),
            *("--ca", str(self._settings.state / "pki" / "ca.crt")),
            environment={"FIELDFARE_TOKEN": token.token},
        )
        _amend(folder / "agent.toml", AGENT)

    def _capture_drifted(self, seed: int) -> None:
        for number, name in enumerate(self._settings.drifting):
            lens = self._cameras[name]
            lens.capture(camera.drift(lens.images, 100 * seed + number))

    def _compress(self, version: int, recipes: list[str]) -> tuple[dict[str, dict[str, Any]], Bundle]:
        spec = {"model": MODEL, "version": version, "recipes": recipes}
        job = self._job("compress", spec, "compressing")
        made = self.client.get_version(MODEL, version)
        for variant in made.variants:
            report = variant.report
            self._screen.fact(
                f"{variant.name}: accuracy {report['accuracy']:.3f}, {report['bytes'] / 1024:.1f} KiB "
                f"({report['zstd_bytes'] / 1024:.1f} compressed), p50 {report['p50_us']:.0f} us, "
                f"{'passes' if variant.gate.passed else 'fails: ' + '; '.join(variant.gate.reasons)}"
            )
        result = job.result or {}
        bundle = next(b for b in made.bundles if b.sha256 == result["bundle"]["sha256"])
        self._screen.fact(f"bundle of {result['chosen']}: {bundle.size / 1024:.1f} KiB, waits for the signer")
        return {variant.name: msgspec.to_builtins(variant) for variant in made.variants}, bundle

    def _job(self, kind: str, spec: dict[str, Any], what: str) -> Job:
        with self._screen.bar(what) as bar:

            def show(job: Job) -> None:
                self._processes.check()
                bar.show(job.progress, job.message)

            try:
                return self.client.wait_job(self.client.create_job(kind, spec).id, timeout_s=600, on_progress=show)
            except JobFailedError as error:
                log = self._settings.state / "jobs" / error.job.id / "log"
                raise StationFailedError(f"{what} failed: {error.job.error}", log=log) from error

    def _roll_out(self, bundle: Bundle, cohort: str) -> None:
        rollout = self.client.start_rollout(bundle.sha256, cohort=cohort, device_timeout_s=60)
        states: list[str] = []
        with self._screen.bar("rolling out") as bar:

            def look() -> Rollout | None:
                now = self.client.rollout(rollout.id)
                active = [device.device for device in now.devices if device.state in {"activated", "healthy"}]
                bar.show(len(active) / len(now.devices), f"{now.state}, wave {now.wave + 1}: {', '.join(active)}")
                if now.state not in states:
                    states.append(now.state)
                return now if now.state in {"done", "failed", "aborted"} else None

            done = self._until(look, "the rollout", timeout_s=120)
        self._outcome.rollouts.append(msgspec.to_builtins(done) | {"states": states})
        if done.state != "done":
            reasons = "; ".join(f"{d.device}: {d.state} {d.reason}" for d in done.devices if d.state != "activated")
            raise StationFailedError(f"the rollout {done.state}: {done.error or ''} {reasons}")
        waves = {wave: [d.device for d in done.devices if d.wave == wave] for wave in {d.wave for d in done.devices}}
        self._screen.fact("; then ".join(", ".join(names) for _, names in sorted(waves.items())))

    def _run_of_alert(self) -> Run:
        run_id = self._until(
            lambda: next((alert.run for alert in self.client.alerts() if alert.run), None),
            "the run that answers the alert",
            timeout_s=30,
        )
        with self._screen.bar("federated rounds") as bar:

            def look() -> Run | None:
                run = self.client.run(run_id)
                trained = [r for r in run.rounds if r.kind == "train"]
                bar.show(len(trained) / run.config["rounds"], f"{len(trained)} of {run.config['rounds']} rounds")
                return run if run.state in FINISHED else None

            run = self._until(look, "the federated run", timeout_s=300)
        if run.state != "succeeded":
            log = self._settings.state / "jobs" / str(run.job) / "log"
            raise StationFailedError(f"the run {run.state}: {run.error}", log=log)
        return run

    def _counted(self, version: int, expected: int) -> dict[str, Any] | None:
        try:
            report = self.client.drift(MODEL, version=version)
        except ClientError as error:
            if error.status == NOT_FOUND:  # no window yet
                return None
            raise
        return report if report["counted"] >= expected else None

    def _evaluate(self, images: Any, classes: Any) -> dict[str, Evaluation]:
        samples = self.client.put_blob(tensors.dump({"x": images, "y": classes}))
        found = {}
        for number, bundle in self._bundles.items():
            spec = {"bundle_sha256": bundle.sha256, "samples_sha256": samples.sha256}
            job = self._job("evaluate", spec, f"version {bundle.version}")
            found[str(number)] = msgspec.convert(job.result, Evaluation)
        return found

    def _until(self, look: Callable[[], T | None], what: str, *, timeout_s: float) -> T:
        """Look until there is something; on the way see that every process lives."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._processes.check()
            found = look()
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise StationFailedError(f"waited {timeout_s:g} s for {what}", log=self._processes.log("coordinator"))
            time.sleep(0.1)


def _amend(path: Path, changes: dict[str, Any]) -> None:
    """Set keys in a TOML file."""
    path.write_text(tomli_w.dumps(tomllib.loads(path.read_text()) | changes))
