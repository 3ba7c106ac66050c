"""A coordinator's gateway over SQLite behind a real Mosquitto, and an agent that reaches it over a bad link."""

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from sqlalchemy import func, select

from contract.messages import Alert, BundleRef, Hello, ProfileWindow, SignedReceipt, UploadBlock
from coordinator import config as coordinator_config
from coordinator.deltas.service import Deltas
from coordinator.fleet.tables import received
from coordinator.gateway.service import Gateway
from coordinator.loops import Loop
from coordinator.monitoring.service import Monitoring
from coordinator.monitoring.tables import profile_windows
from coordinator.rollouts.tables import receipts
from edge_agent import daemon
from edge_agent.config import Config, Folder, save
from edge_agent.reconnect import Backoff
from edge_agent.state import State
from tests.fakes import agent_models
from tests.fakes.broker_process import BrokerProcess, eventually
from tests.fakes.fleet_site import Instructions, NoCommands, Site
from tests.links.relay import Relay

DEVICE = "meter-1"
PATIENCE_S = 120.0  # of a test, on a machine that is busy


class Cloud:
    """Mosquitto, and the coordinator's own gateway and services over SQLite.

    Attributes:
        uploads: blocks of updates that were taken, by index.
        hellos: as the fleet took them.
    """

    def __init__(self, folder: Path) -> None:
        self.broker = BrokerProcess(folder, "mosquitto")
        self.site = Site(folder)
        self.site.now = time.time()
        self.site.begin()
        self.site.enrol(DEVICE)
        self.uploads: list[int] = []
        self.hellos: list[Hello] = []
        self._start()

    def _start(self) -> None:
        site = self.site
        monitoring = Monitoring(site.storage, site.config, answer=_never, cohort=site.fleet.members)
        handlers = {
            SignedReceipt: site.rollouts.on_receipt,
            Alert: site.fleet.on_alert,
            ProfileWindow: monitoring.on_profile_window,
            UploadBlock: lambda _connection, _device, body, _now: self.uploads.append(body.index),
        }
        self.gateway = Gateway(
            coordinator_config.load(self.broker.state),
            self.broker.state,
            storage=site.storage,
            fleet=site.fleet,
            signing=site.signing,
            handlers=handlers,
            instructions=Instructions(),
            commands=NoCommands(),
            deltas=Deltas(site.storage, site.signing),
        )
        self.gateway.start()
        self._loop = Loop("gateway", self.gateway.tick, every_s=0.02)
        self._loop.start()
        assert eventually(lambda: self.gateway.connected, 30)

    def close(self) -> None:
        self._loop.stop()
        self.gateway.stop()
        self.site.close()
        self.broker.stop()

    def offer(self, bundle: bytes) -> BundleRef:
        """Sign a bundle and wish for it."""
        ref = self.site.register(data=bundle)
        self.site.sign()
        with self.site.engine.begin() as connection:
            self.site.fleet.set_desired(connection, DEVICE, ref.model, None, ref)
        return ref

    def outcomes(self) -> list[str]:
        """Of receipts whose signature held, in the order of arrival."""
        with self.site.engine.begin() as connection:
            return list(connection.execute(select(receipts.c.outcome).order_by(receipts.c.id)).scalars())

    def windows(self) -> tuple[int, int]:
        """Profile windows that were kept, and the samples in them."""
        columns = func.count(), func.coalesce(func.sum(profile_windows.c.samples), 0)
        with self.site.engine.begin() as connection:
            count, samples = connection.execute(select(*columns)).one()
        return int(count), int(samples)

    def came(self) -> tuple[list[int], list[str]]:
        """Sequence numbers of the reports that came, and why some had no effect."""
        with self.site.engine.begin() as connection:
            rows = connection.execute(select(received.c.seq, received.c.dropped).order_by(received.c.seq)).all()
        return [row.seq for row in rows], [row.dropped for row in rows if row.dropped]


def _never(*_: object) -> str:
    raise AssertionError


class Device:
    """An enrolled folder whose broker is at the near end of a relay."""

    def __init__(self, cloud: Cloud, folder: Path, port: int, **settings: Any) -> None:
        site = cloud.site
        self.folder = Folder(folder)
        key = site.keys[DEVICE].private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with site.engine.begin() as connection:
            certificate, root = site.fleet.certificate(connection, DEVICE), site.signing.root(connection)
        assert certificate is not None
        authority = (cloud.broker.state / "pki" / "ca.crt").read_bytes()
        for path, content in (
            (self.folder.key, key),
            (self.folder.certificate, certificate),
            (self.folder.ca, authority),
            (self.folder.tuf_root, root),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        defaults: dict[str, Any] = {"window_samples": 10, "window_idle_s": 0.5, "hello_s": 2.0, "poll_s": 0.05}
        config = Config(device=DEVICE, broker_host="127.0.0.1", broker_port=port, **{**defaults, **settings})
        save(self.folder, config)
        self.source = self.folder.source(config)
        self.fed = 0

    def feed(self, count: int, samples: int = 50) -> None:
        """Put sample files into the source, each once and whole."""
        from contract import tensors

        self.source.mkdir(parents=True, exist_ok=True)
        x, _ = agent_models.samples(samples, seed=1)
        data = tensors.dump({"x": x})
        for _ in range(count):
            beside = self.source / f".{self.fed:06d}"
            beside.write_bytes(data)
            beside.rename(self.source / f"{self.fed:06d}.safetensors")
            self.fed += 1

    def ledger(self) -> tuple[int, int, int]:
        """Reports made so far, reports that wait, and inferences, as the device's own memory has them."""
        state = State(self.folder.state, outbox_id="")
        try:
            rows = state._rows("select seq from sqlite_sequence where name = 'outbox'")
            return int(rows[0][0]) if rows else 0, state.pending_count(), state.get("inferences", int, 0)
        finally:
            state.close()


class AgentThread(Device):
    """The real agent in a thread of this process, so that its pauses can be scaled as the test scales time."""

    def start(self, *, backoff: Backoff | None = None) -> None:
        self.agent = daemon.Agent(self.folder)
        if backoff is not None:
            self.agent._session._backoff = backoff
        self._thread = threading.Thread(target=self.agent.run, name="agent")
        self._thread.start()

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(60)
        assert not self._thread.is_alive()


class AgentProcess(Device):
    """The real agent in a process of its own, perhaps started by another program."""

    def start(self, *prefix: str) -> None:
        self.log = self.folder.root / "log"
        with self.log.open("ab") as log:
            command = [*prefix, sys.executable, "-m", "edge_agent", "run", "--state", str(self.folder.root)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(60) == 0, self.log.read_text()


def wait(condition: Any, what: Any = "") -> Any:
    """Wait for something; say `what` where it does not come."""
    value = eventually(condition, PATIENCE_S)
    assert value, what() if callable(what) else what
    return value


def all_arrived_once(cloud: Cloud, device: Device, *, samples: int, outcomes: list[str]) -> int:
    """Wait until the device has nothing left to tell, and check that each report came, had its effect, and only once.

    Returns: reports.
    """
    wait(lambda: device.ledger()[2] == samples, device.ledger)
    wait(lambda: device.ledger()[1] == 0 and cloud.windows()[1] >= samples, lambda: (device.ledger(), cloud.windows()))
    made, _, inferences = device.ledger()
    seqs, refused = cloud.came()
    assert (seqs, refused) == (list(range(1, made + 1)), [])  # none is missing, none was refused
    windows, counted = cloud.windows()
    assert (counted, inferences) == (samples, samples)  # and nothing counted twice
    assert cloud.outcomes() == outcomes
    assert windows + len(outcomes) + len(cloud.uploads) == made
    return made


__all__ = ["DEVICE", "AgentProcess", "AgentThread", "Cloud", "Relay", "all_arrived_once", "wait"]
