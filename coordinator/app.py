"""The coordinator's composition root: the one place where services meet each other, the API and their loops."""

import asyncio
import logging
import signal
import socket
import ssl
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from contract.messages import Alert, CommandReply, ProfileWindow, RoundReply, SignedReceipt, UploadBlock
from coordinator import api, config, overview, records
from coordinator.broker import revoked
from coordinator.config import Config
from coordinator.deltas.service import Deltas
from coordinator.errors import SetupError
from coordinator.fleet import routes as fleet_routes
from coordinator.fleet.device_commands import Commands
from coordinator.fleet.revocation import Revocation
from coordinator.fleet.service import Fleet
from coordinator.gateway import artifact_routes
from coordinator.gateway.core import Handler
from coordinator.gateway.service import Gateway
from coordinator.jobs import routes as job_routes
from coordinator.jobs.runner import Runner
from coordinator.jobs.service import Jobs
from coordinator.loops import Loop
from coordinator.monitoring import routes as monitoring_routes
from coordinator.monitoring.policy import RunOnCohort
from coordinator.monitoring.service import Monitoring
from coordinator.pki import Authority
from coordinator.registry import routes as registry_routes
from coordinator.registry.service import Registry
from coordinator.rollouts import routes as rollout_routes
from coordinator.rollouts.service import Rollouts
from coordinator.rounds import routes as round_routes
from coordinator.rounds.service import Rounds
from coordinator.signing import routes as signing_routes
from coordinator.signing.service import Signing
from coordinator.storage import Blobs, Storage, open_engine

GATEWAY_TICK_S = 0.05  # devices that pull wait for it
GRACE_S = 2.0  # for requests that are being answered when the coordinator is asked to end; idle callers use it up

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Services:
    """Everything that a coordinator consists of."""

    config: Config
    storage: Storage
    registry: Registry
    jobs: Jobs
    fleet: Fleet
    commands: Commands
    signing: Signing
    rollouts: Rollouts
    rounds: Rounds
    monitoring: Monitoring
    gateway: Gateway
    deltas: Deltas
    revocation: Revocation


def compose(state: Path) -> Services:
    """Build the services of a state folder; nothing runs yet.

    Raises:
        SetupError: the folder is not whole.
    """
    settings = config.load(state)
    storage = Storage(open_engine(settings.database_url(state)), Blobs(settings.blobs_url(state)))
    signing = Signing(storage, state / "pki" / "tuf")
    authority = Authority.load(state)
    fleet = Fleet(storage, settings, authority)
    commands = Commands(storage)
    jobs = Jobs(storage, state / "jobs")
    rounds = Rounds(storage, jobs=jobs, cohort=fleet.members, smallest_cohort=settings.smallest_cohort)
    rollouts = Rollouts(storage, fleet, signing)
    answer = RunOnCohort(rounds, settings.policy, window_samples=settings.drift.window_samples)
    monitoring = Monitoring(storage, settings, answer=answer, cohort=fleet.members)
    handlers: dict[type, Handler] = {
        SignedReceipt: rollouts.on_receipt,
        Alert: fleet.on_alert,
        ProfileWindow: monitoring.on_profile_window,
        UploadBlock: rounds.on_upload_block,
        RoundReply: rounds.on_round_reply,
        CommandReply: commands.on_reply,
    }
    deltas = Deltas(storage, signing)
    gateway = Gateway(
        settings,
        state,
        storage=storage,
        fleet=fleet,
        signing=signing,
        handlers=handlers,
        instructions=rounds,
        commands=commands,
        deltas=deltas,
    )
    revocation = Revocation(
        storage,
        settings,
        authority,
        publish=lambda crl: revoked.publish(state, settings, crl),
        kick=gateway.kick,
    )
    return Services(
        config=settings,
        storage=storage,
        registry=Registry(storage, signing.request, root=signing.root),
        jobs=jobs,
        fleet=fleet,
        commands=commands,
        signing=signing,
        rollouts=rollouts,
        rounds=rounds,
        monitoring=monitoring,
        gateway=gateway,
        deltas=deltas,
        revocation=revocation,
    )


def web(services: Services, tokens: api.Tokens, *, started_at: float) -> FastAPI:
    """The API over the services."""
    storage, settings = services.storage, services.config
    routes = api.Routes(
        open=[
            fleet_routes.enrolment(services.fleet, services.signing, storage),
            artifact_routes.router(
                storage.blobs, services.gateway.may_fetch, fleet_routes.signed_by_device(services.fleet, "blobs")
            ),
            signing_routes.devices(
                services.signing, storage, fleet_routes.signed_by_device(services.fleet, "metadata")
            ),
        ],
        operator=[
            registry_routes.router(services.registry, storage.blobs),
            job_routes.router(services.jobs),
            fleet_routes.router(services.fleet, services.commands),
            fleet_routes.measurements(services.commands),
            rollout_routes.router(services.rollouts),
            round_routes.router(services.rounds, storage),
            monitoring_routes.router(services.monitoring, storage),
        ],
        signer=[signing_routes.router(services.signing, settings.mode)],
    )

    def status() -> records.Status:
        broker = {"kind": settings.broker, "host": settings.host, "port": settings.broker_port}
        with storage.engine.begin() as connection:
            return overview.read(
                connection,
                version=_version(),
                started_at=started_at,
                broker={**broker, "connected": services.gateway.connected},
                expires=services.signing.expiry(connection),
                dropped=services.gateway.counters.dropped(),
            )

    def metrics() -> bytes:
        return overview.prometheus(status(), services.gateway.counters)

    return api.create_app(routes, tokens, status=status, metrics=metrics)


def _version() -> str:
    try:
        return metadata.version("fieldfare")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


def serve(state: Path) -> None:
    """Run API and loops until SIGTERM or SIGINT; jobs are ended too, and resumed at the next start.

    Raises:
        SetupError: a port that is taken, or a state folder that is not whole.
    """
    services = compose(state)
    runner = Runner(services.storage, state, max_jobs=services.config.max_jobs)
    loops = _loops(services, runner)
    try:
        app = web(services, api.Tokens.load(state), started_at=time.time())
        with _listen(services.config.host, services.config.api_port) as listener:
            services.signing.tick(time.time())  # before a device can ask: what was signed may have expired meanwhile
            services.gateway.start()
            for loop in loops:
                loop.start()
            try:
                _run_until_signal(app, listener, state)
            finally:
                for loop in loops:
                    loop.stop()
                services.gateway.stop()
                runner.stop()
    finally:
        services.storage.engine.dispose()


def _loops(services: Services, runner: Runner) -> list[Loop]:
    def fleet(now: float) -> None:
        services.signing.tick(now)
        services.rollouts.tick(now)
        services.rounds.tick(now)

    return [
        Loop("jobs", lambda _now: runner.tick()),
        Loop("fleet", fleet),
        Loop("gateway", services.gateway.tick, every_s=GATEWAY_TICK_S),
        Loop("deltas", services.deltas.tick, every_s=GATEWAY_TICK_S),
        Loop("revocation", services.revocation.tick),
        Loop("monitoring", services.monitoring.tick),
    ]


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SetupError(
            f"port {port} on {host} is taken ({error.strerror}); set another api_port in {config.FILE}"
        ) from error
    return listener


def _run_until_signal(app: FastAPI, listener: socket.socket, state: Path) -> None:
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        ssl_certfile=state / "pki" / "api.crt",
        ssl_keyfile=str(state / "pki" / "api.key"),
        ssl_version=ssl.PROTOCOL_TLS_SERVER,
        timeout_graceful_shutdown=int(GRACE_S),
        server_header=False,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again when it has ended
        signal.signal(number, lambda _number, _frame: None)
    asyncio.run(uvicorn.Server(settings).serve(sockets=[listener]))
