"""Job kind `rounds`: one run in a process of its own. Spec: {"run": id}. Result: {"model", "version"}.

It may be killed at any moment: started again, it goes on after the last committed round.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from contract import bundle as bundles
from contract import codec, tensors
from contract.bundle import Bundle
from contract.errors import ContractError
from contract.profile import Counts, Reference
from coordinator import config as configuration
from coordinator.client import Client, JobContext
from coordinator.errors import CoordinatorError
from coordinator.monitoring import windows
from coordinator.rounds import reference, runs
from coordinator.rounds.errors import RunClosedError, RunError
from coordinator.rounds.grid import total
from coordinator.rounds.journal import SqlJournal
from coordinator.rounds.loop import Plan, make_strategy, run_rounds
from coordinator.rounds.mailbox import SqlMailbox
from coordinator.rounds.mqtt_grid import MqttGrid
from coordinator.rounds.runs import RoundResult, Run
from coordinator.storage import Blobs, Storage, open_engine

logger = logging.getLogger(__name__)

_INHERITED = ("transform_sha256", "parameters")  # of the base version's details, what is true of its child too
_REGISTER_RETRY_S = 600.0  # the coordinator may be down for a while; the rounds are committed and can wait


def run(context: JobContext) -> dict[str, Any]:
    """Drive a run to its end and register what it made.

    Raises:
        RunError: too few good replies, a bundle that cannot train, or a run that has ended.
    """
    settings = configuration.load(context.state)
    with _storage(settings, context) as storage:
        name = str(context.spec["run"])
        with storage.engine.begin() as connection:
            runs.start(connection, name)
            found = runs.get(connection, name)
        if found.state == "succeeded":
            return {"model": found.model, "version": found.result_version}
        if found.state not in runs.OPEN:
            raise RunClosedError(f"run {name} is {found.state}: {found.error}")
        try:
            version = _drive(context, storage, found, settings)
        except (CoordinatorError, ContractError) as error:
            with storage.engine.begin() as connection:
                runs.finish(connection, name, "failed", now=time.time(), error=str(error))
            raise
        return {"model": found.model, "version": version, "run": name}


@contextmanager
def _storage(settings: configuration.Config, context: JobContext) -> Iterator[Storage]:
    engine = open_engine(settings.database_url(context.state))
    try:
        yield Storage(engine, Blobs(settings.blobs_url(context.state)))
    finally:
        engine.dispose()


def _drive(context: JobContext, storage: Storage, found: Run, settings: configuration.Config) -> int:
    smallest = settings.smallest_cohort
    base = bundles.unpack(storage.blobs.get(found.bundle_sha256))
    if base.manifest.training is None:
        raise RunError(f"the bundle of {found.model}:{found.version} has no training part; build one that has")
    weights = tensors.load(base.files["weights"])
    grid = MqttGrid(
        SqlMailbox(storage),
        found.cohort,
        run=found.id,
        bundle_sha256=found.bundle_sha256,
        seed=found.config.seed,
        like=weights,
        max_examples=found.config.max_samples,
        spec=base.profile.spec,
    )
    plan = Plan(found.config, len(found.cohort), smallest, lambda counts: total(counts, base.profile.spec))
    strategy = make_strategy(found.config, cohort=len(found.cohort), smallest=smallest)
    results = run_rounds(strategy, grid, SqlJournal(storage, found.id), plan, weights, report=context.report)
    context.report(0.99, "registering the new version")
    recent = _recent(storage, found, base, settings.drift)
    version = _register(context, storage, found, results, _reference(base, recent, results[-1]))
    with storage.engine.begin() as connection:
        runs.finish(connection, found.id, "succeeded", now=time.time(), version=version)
    return version


def _recent(storage: Storage, found: Run, base: Bundle, drift: configuration.Drift) -> Counts:
    with storage.engine.begin() as connection:
        return windows.recent_of_cohort(
            connection,
            found.bundle_sha256,
            base.profile.spec,
            found.cohort,
            baseline_samples=drift.baseline_samples,
            window_samples=drift.window_samples,
        )


def _reference(base: Bundle, recent: Counts, after: RoundResult) -> Reference:
    return base.profile if after.counts is None else reference.merge(base.profile.spec, recent, after.counts)


def _register(context: JobContext, storage: Storage, found: Run, results: list[RoundResult], normal: Reference) -> int:
    before, after = results[0], results[-1]
    rounds = [{"round": each.round, "kind": each.kind, "replies": each.replies, **each.metrics} for each in results]
    with Client.from_state(context.state, retry_s=_REGISTER_RETRY_S) as client:
        parent = client.get_version(found.model, found.version)
        kept = {name: parent.details[name] for name in _INHERITED if name in parent.details}
        made = client.create_version(
            found.model,
            task=parent.task,
            weights_sha256=after.weights_sha256,
            metrics={**after.metrics, "before": before.metrics, "after": after.metrics, "rounds": rounds},
            parents=[found.version],
            run=found.id,
            job=context.id,
            reference_sha256=storage.blobs.put(codec.encode_json(normal)).sha256,
            details={**kept, "federated": {"cohort": len(found.cohort), "bundle": found.bundle_sha256}},
        )
    return made.version
