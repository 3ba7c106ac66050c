"""What an alert starts: a federated run on its cohort, with the settings of the policy."""

from sqlalchemy import Connection

from coordinator.config import Policy
from coordinator.records import Alert
from coordinator.rounds import serving
from coordinator.rounds.service import Rounds
from coordinator.rounds.settings import RunConfig


class RunOnCohort:
    """`service.Answer` by `Rounds.launch`."""

    def __init__(self, rounds: Rounds, policy: Policy, *, window_samples: int) -> None:
        """Launch by `policy`; the new version is evaluated on as many samples as a recent window holds."""
        self._rounds = rounds
        self._policy = policy
        self._window_samples = window_samples

    def __call__(self, connection: Connection, alert: Alert, now: float) -> str:
        """Launch the run on those devices that still have the alert's bundle, and return its id.

        Errors as in `Rounds.launch`.
        """
        policy = self._policy
        config = RunConfig(
            rounds=policy.rounds,
            epochs=policy.epochs,
            learning_rate=policy.learning_rate,
            optimizer=policy.optimizer,
            momentum=policy.momentum,
            weight_decay=policy.weight_decay,
            proximal_mu=policy.proximal_mu,
            round_timeout_s=policy.round_timeout_s,
            evaluate_samples=self._window_samples,
        )
        run = self._rounds.launch(
            connection,
            model=alert.model,
            version=alert.version,
            bundle_sha256=alert.bundle_sha256,
            cohort=serving.devices_with(connection, alert.bundle_sha256, alert.cohort),
            config=config,
            now=now,
            alert=alert.id,
        )
        return run.id
