"""The agent as a process: its parts put together, its workers and one loop that listens and speaks.

The loop reads the session's inbox, sends what is due from the outbox and the heartbeat; it never waits for the
network or for a model. Updating, probation, inferring and training wait, each in a thread of its own.
"""

import logging
import os
import queue
import signal
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from contract import codec, limits, topics
from contract.errors import MalformedError, TopicError, WireError
from contract.messages import (
    Ack,
    Command,
    DeltaReply,
    Desired,
    Hello,
    Instruction,
    MetadataReply,
    ProfileWindow,
    RenewalReply,
    Report,
    Wanted,
    check_desired,
)
from edge_agent import __version__, config, lean, metadata, selftest, signing, trust
from edge_agent.apps import Apps
from edge_agent.bench import Bench
from edge_agent.delivery import Delivery
from edge_agent.disk import Disk
from edge_agent.errors import ConfigError
from edge_agent.events import Tell, silent
from edge_agent.folder import check_owner, locked, read_root, sweep
from edge_agent.identity import Identity
from edge_agent.liveness import Stopping, Vitals
from edge_agent.monitor import Monitor
from edge_agent.notify import Notifier
from edge_agent.outbox import Flow, heartbeat_is_due
from edge_agent.probation import Probations
from edge_agent.recovery import open_state
from edge_agent.remote import Remote
from edge_agent.renewal import Renewal
from edge_agent.rounds import Rounds
from edge_agent.runtime_backend import runtime_version
from edge_agent.serving import Serving
from edge_agent.session import Connected, Disconnected, Event, Message, Session
from edge_agent.slots import Slots
from edge_agent.switch import Switch
from edge_agent.updater import Updater
from edge_agent.workers import BACKOFF_S, Workers

_LOG = logging.getLogger(__name__)
_STALE_S = 7 * 86400.0
_PROBATION_S = 1.0
_EXPIRE_S = 600.0
_TURN_S = 0.25  # how soon a report is noticed while nothing comes in; at rest each turn costs processor time


class Agent:
    """Everything between the folder on disk and the broker."""

    def __init__(
        self,
        folder: config.Folder,
        *,
        tell: Tell = silent,
        notifier: Notifier | None = None,
        log: Callable[[], str] = str,
    ) -> None:
        """Open the folder and restore what served.

        Args:
            folder: of the agent.
            tell: hears what happens.
            notifier: hears what a supervisor wants to know.
            log: gives the newest lines of the log.

        Raises:
            ConfigError: the folder is not usable.
        """
        self._tell = tell
        self._told = 0
        self._runtime_version = runtime_version()
        self._config = config.load(folder)
        self._identity = Identity(self._config.device, folder)
        self._boot = uuid.uuid4().hex
        self._stopping, self._ending = Stopping(), False
        self._vitals = Vitals(self._stopping, notifier or Notifier())
        self._desired: Desired | None = None
        self._wake_updater, self._wake_rounds = threading.Event(), threading.Event()
        self._workers = Workers(self._stopping, self.stop)
        self._state = open_state(folder.state, outbox_id=uuid.uuid4().hex, bounds=self._config.outbox)
        self._starts = self._state.get("starts", int, 0) + 1
        try:
            with self._state.transaction():
                self._state.put("connected", False)  # a killed agent could not say so
                self._state.put("starts", self._starts)
        except sqlite3.OperationalError as error:  # a full disk: what is on it can be served
            _LOG.error("the start is not noted down, make room on the disk: %s", error)
        self._hellos = 0
        self._identity.tls()  # an identity that cannot be used is said now, not with each connection
        self._serving = Serving(self._config.runtime)
        self._session = Session(
            self._config.device,
            host=self._config.broker_host,
            port=self._config.broker_port,
            tls=self._identity.tls,
            boot=self._boot,
            protocol=self._config.mqtt,
            keepalive_s=self._config.keepalive_s,
        )
        self._delivery = Delivery(
            self._config,
            folder,
            link=self._session,
            state=self._state,
            wanted=self._model_of,
            stopping=self._stopping,
        )
        self._metadata = metadata.Pages(self._session, retry_s=self._config.retry_s, stopping=self._stopping)
        self._renewal = Renewal(
            folder.root,
            has_url=bool(self._config.url),
            send=self._session.send,
            renewed=self._session.hurry,
            stopping=self._stopping,
            retry_s=self._config.retry_s,
            tell=self._tell,
        )
        self._flow = Flow(retry_s=self._config.retry_s)
        self._updating = threading.Lock()
        self._compose(folder, log)
        self._switch.restore()
        self._hello_at = self._expire_at = 0.0
        self._settling = lean.Settling(time.monotonic)

    def _compose(self, folder: config.Folder, log: Callable[[], str]) -> None:
        slots = Slots(folder.slots)
        fetch: trust.Fetch = self._metadata.fetch
        if self._config.updates.transport == "https":
            fetch = metadata.over_https(self._config.url, folder.ca, lambda: signing.token(folder, "metadata"))
        self._switch = Switch(
            self._config,
            state=self._state,
            slots=slots,
            serving=self._serving,
            identity=self._identity,
            clock=time.time,
            tell=self._tell,
        )
        self._probations = Probations(
            self._config, state=self._state, serving=self._serving, switch=self._switch, monotonic=time.monotonic
        )
        disk = Disk(self._config, folder, state=self._state, switch=self._switch)

        def trusted(target: str) -> trust.Target:
            return trust.lookup(read_root(folder.tuf_root), folder.tuf_metadata, target, fetch)

        self._updater = Updater(
            self._config,
            state=self._state,
            serving=self._serving,
            switch=self._switch,
            trusted=trusted,
            pull=self._delivery.bundle,
            make_room=disk.make_room,
            self_test=lambda path, ref: selftest.run(path, ref, self._config, self._stopping),
            wanted=self._wanted,
            check_time=self._delivery.check_time,
            runtime_version=self._runtime_version,
        )
        bench = Bench(
            self._config,
            state=self._state,
            slots=slots,
            trusted=trusted,
            check_room=disk.check_room,
            pull=self._delivery.bundle,
            updating=self._updating,
            stopping=self._stopping,
        )
        self._remote = Remote(
            folder.root, state=self._state, stopping=self._stopping, log=log, bench=bench.run, tell=self._tell
        )
        source = folder.source(self._config)
        source.mkdir(parents=True, exist_ok=True)
        self._monitor = Monitor(self._config, source=source, state=self._state, serving=self._serving, clock=time.time)
        self._apps = Apps(
            self._config,
            folder,
            serving=self._serving,
            monitor=self._monitor,
            state=self._state,
            stopping=self._stopping,
            tell=self._tell,
        )
        self._rounds = Rounds(
            self._config,
            staging=folder.staging,
            state=self._state,
            slots=slots,
            serving=self._serving,
            files=self._monitor.labelled_files,
            pull=self._delivery.artifact,
            clock=time.time,
            stopping=self._stopping,
            tell=self._tell,
            store=self._apps.store,
        )

    def end(self) -> None:
        """As `stop`, for a signal handler: it may have interrupted whoever holds a lock that `stop` takes."""
        self._ending = True

    def stop(self) -> None:
        """Ask the agent to end; `run` returns soon after."""
        self._stopping.set()
        self._wake_updater.set()
        self._wake_rounds.set()
        self._remote.wake.set()
        self._apps.stop()

    def run(self) -> None:
        """Serve until `stop`.

        Raises:
            ConfigError: the disk damaged the agent's memory; the next start puts it aside.
        """
        for name, work, wake in (
            ("update", self._update, self._wake_updater),
            ("probation", self._watch, threading.Event()),
            ("infer", self._infer, threading.Event()),
            ("train", self._train, self._wake_rounds),
            ("api", self._apps.serve, threading.Event()),
            ("renew", lambda _wake: self._renewal.work(), threading.Event()),
            ("remote", self._remote.work, self._remote.wake),
        ):
            self._workers.add(name, work, wake)
        self._wake_rounds.set()  # an instruction may have survived the last run
        self._tell("started", device=self._config.device, bundles=self._serving.bundles())
        self._session.start()
        self._workers.start(self._apps.threads())
        self._vitals.ready()
        try:
            while not (self._ending or self._stopping.is_set()):
                self._listen_and_speak()
                self._vitals.show(self._status_line(), time.monotonic())
        finally:
            self._vitals.stopping()
            self.stop()
            self._workers.join()
            self._session.close()
            try:
                self._monitor.close()
                self._probations.close()
                self._state.note("connected", False)
            except sqlite3.Error:  # a full disk
                _LOG.exception("what was last counted is lost")
            self._state.close()
            self._tell("stopped")
        if self._workers.damage is not None:
            raise ConfigError(f"the agent's memory was damaged while it ran: {self._workers.damage}; start it again")

    def _status_line(self) -> str:
        serves = ", ".join(f"{ref.model}:{ref.version} {ref.variant}" for ref in self._serving.bundles())
        return f"serves {serves or 'nothing yet'}, {'connected' if self._session.connected else 'not connected'}"

    def _listen_and_speak(self) -> None:
        try:
            with suppress(queue.Empty):
                self._on_event(self._session.inbox.get(timeout=_TURN_S))
            self._speak()
        except Exception as error:  # noqa: BLE001  # a full disk now must not end the service for ever
            self._workers.note(error)
            _LOG.exception("failed unexpectedly and goes on")
            self._stopping.wait(BACKOFF_S[0])

    def _update(self, wake: threading.Event) -> None:
        self._workers.rest(wake)
        desired = self._desired
        if desired is None or self._stopping.is_set():
            return
        with self._stopping.resting():  # while a bundle is measured
            self._updating.acquire()
        try:
            self._updater.apply(desired)
        except BaseException:
            wake.set()  # again after the pause
            raise
        finally:
            self._updating.release()
        self._hello_at = 0.0
        self._settling.soon()

    def _watch(self, _wake: threading.Event) -> None:
        if self._probations.tick():
            self._hello_at = 0.0
            self._wake_updater.set()  # what the disk broke is wished for still
        self._settling.tick(self._serving.inferences)
        self._stopping.wait(_PROBATION_S)

    def _model_of(self, sha256: str) -> str | None:
        """The model for which a bundle is wanted."""
        models = self._desired.models if self._desired is not None else {}
        return next((name for name, one in models.items() if one.bundle and one.bundle.sha256 == sha256), None)

    def _wanted(self, model: str) -> Wanted | None:
        return self._desired.models.get(model) if self._desired is not None else None

    def _infer(self, _wake: threading.Event) -> None:
        if not self._monitor.tick():
            self._stopping.wait(self._config.poll_s)

    def _train(self, wake: threading.Event) -> None:
        if not self._rounds.tick():
            self._workers.rest(wake)

    def _on_event(self, event: Event) -> None:
        match event:
            case Connected(mqtt):
                _LOG.info("connected to %s:%d, MQTT %s", self._config.broker_host, self._config.broker_port, mqtt)
                self._state.note("connected", True)
                self._state.note("starts", self._starts)  # again: the disk may have been full at the start
                self._flow.reset()
                self._hello_at = 0.0
                self._tell("connected", broker=f"{self._config.broker_host}:{self._config.broker_port}", mqtt=mqtt)
            case Disconnected(reason):
                _LOG.info("disconnected: %s", reason)
                self._state.note("connected", False)
                self._tell("disconnected", reason=reason)
            case Message(topic, payload):
                try:
                    self._on_message(topic, payload)
                except WireError as error:
                    _LOG.warning("dropped a message on %s: %s", topic[:120], error)
                    self._tell("dropped", topic=topic[:120], reason=str(error))

    def _on_message(self, topic: str, payload: bytes) -> None:
        match topics.parse(topic):
            case topics.BlobTopic() as block:
                self._delivery.accept_block(block, payload)
            case topics.DeviceTopic(self._config.device, "down", "desired") if payload:
                self._desired = check_desired(codec.decode_json(payload, Desired))
                self._wake_updater.set()
            case topics.DeviceTopic(self._config.device, "down", "metadata"):
                self._metadata.accept(codec.decode(payload, MetadataReply))
            case topics.DeviceTopic(self._config.device, "down", "delta"):
                self._delivery.accept_delta(codec.decode(payload, DeltaReply, limit=limits.CONTROL_BYTES))
            case topics.DeviceTopic(self._config.device, "down", "renew"):
                self._renewal.accept(codec.decode(payload, RenewalReply, limit=limits.CONTROL_BYTES))
            case topics.DeviceTopic(self._config.device, "down", "ack"):
                ack = codec.decode(payload, Ack, limit=limits.CONTROL_BYTES)
                _check_integers(ack.seqs)
                self._state.forget(ack.outbox, ack.seqs)
            case topics.DeviceTopic(self._config.device, "down", "round"):
                instruction = codec.decode(payload, Instruction, limit=limits.CONTROL_BYTES)
                if self._state.add_instruction(instruction, at=time.time()):
                    self._wake_rounds.set()
            case topics.DeviceTopic(self._config.device, "down", "command"):
                self._remote.accept(codec.decode(payload, Command, limit=limits.CONTROL_BYTES))
            case _:
                raise TopicError(f"nobody reads {topic[:120]}")

    def _speak(self) -> None:
        self._session.revive()
        if time.monotonic() >= self._expire_at:
            self._expire_at = time.monotonic() + _EXPIRE_S
            self._state.expire()
        if not self._session.connected:
            return
        now = time.monotonic()
        on_the_way = self._session.unconfirmed()
        due = heartbeat_is_due(now, self._hello_at, self._config.hello_s, busy=bool(on_the_way))
        if due and self._session.send(self._hello()):
            self._hello_at = now + self._config.hello_s
        for seq in self._flow.due(self._state.pending(Flow.LOOK_AHEAD), now, on_the_way=on_the_way):
            report = self._state.read_report(seq)
            if report is None:
                continue
            if not self._session.send(report):  # too much is on its way, and what follows matters less
                break
            self._flow.sent(seq, now)
            self._tell_window(report)

    def _tell_window(self, report: Report) -> None:
        if isinstance(report.body, ProfileWindow) and report.seq > self._told:  # not when it is sent again
            self._told = report.seq
            self._tell("window", samples=report.body.counts.samples, bundle_sha256=report.body.bundle_sha256)

    def _hello(self) -> Hello:
        self._hellos += 1
        return Hello(
            outbox=self._state.outbox_id,
            starts=self._starts,
            boot=self._boot,
            connection=self._session.connections,
            seq=self._hellos,
            agent_version=__version__,
            runtime_version=self._runtime_version,
            hardware_class=self._config.hardware_class,
            bundles=self._serving.bundles(),
            samples=min(self._monitor.labelled() + self._apps.kept(), self._config.max_samples),
            inferences=self._serving.inferences,
            dropped=self._state.dropped,
            sent_at=time.time(),
        )


def run(root: Path, *, tell: Tell = silent, log: Callable[[], str] = str) -> None:
    """Run the agent of a folder until SIGTERM or SIGINT; `tell` hears what happens, `log` gives the newest log lines.

    Raises:
        ConfigError: the folder is not usable, or another agent runs in it.
    """
    folder = config.Folder(root)
    config.load(folder)
    check_owner(root)
    if os.geteuid() == 0:
        _LOG.warning("runs as root, which it never needs: start it as a user of its own (docs/devices.md)")
    os.umask(0o077)
    with folder.lock.open("w") as lock:
        if not locked(lock):
            raise ConfigError(f"{root}: another agent runs in this folder; stop it first")
        sweep(folder.staging, older_than=time.time() - _STALE_S)
        try:
            agent = Agent(folder, tell=tell, notifier=Notifier.from_environment(), log=log)
        except sqlite3.Error as error:
            raise ConfigError(f"{folder.state}: {error}; make room on the disk, then see: edge-agent doctor") from error
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: agent.end())
        agent.run()


def _check_integers(numbers: Iterable[int]) -> None:
    if not all(0 <= number < 2**63 for number in numbers):
        raise MalformedError("a number is negative or larger than the agent's memory holds")
