"""The coordinator's configuration: one TOML file in its state folder, parsed once.

`init` writes it with free ports on 127.0.0.1, so that a restarted coordinator is found where it was.
"""

from pathlib import Path
from typing import Literal

import msgspec

from contract.training import Optimizer
from coordinator.errors import SetupError
from coordinator.files import write_private

FILE = "coordinator.toml"


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an alert starts. With `action = "run"` a federated run on the alert's cohort, with these settings.

    Attributes:
        retry_s: seconds after a run that failed or was cancelled until its devices may raise an alert again.
    """

    action: Literal["none", "run"] = "none"
    rounds: int = 5
    epochs: int = 2
    learning_rate: float = 0.005
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    round_timeout_s: float = 120.0
    retry_s: float = 3600.0


class Drift(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When drift is said to be there.

    Attributes:
        alpha: false discovery rate over devices and features.
        materiality: smallest population stability index that matters, whatever its p-value.
        baseline_samples: the first samples of a device under a bundle are its own baseline.
        window_samples: fewest recent samples of a device that are tested.
        interval_s: seconds between two looks.
    """

    alpha: float = 0.01
    materiality: float = 0.25
    baseline_samples: int = 500
    window_samples: int = 500
    interval_s: float = 60.0


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that an operator may set.

    Attributes:
        database: SQLAlchemy URL; empty means SQLite in the state folder.
        blobs: fsspec URL; empty means a folder in the state folder.
        mode: `laptop` makes and keeps every key on this machine; in `production` root, targets and bundles are signed
            elsewhere.
        host, api_port, broker_port: where the API and the broker listen.
        broker: `embedded` (amqtt), `mosquitto`, or `external`: one that somebody else runs, with the configuration of
            `fieldfare broker config`. All demand a client certificate.
        broker_host: where the coordinator and the devices find an external broker; empty: `host`.
        broker_crl: where an external broker reads the list of revoked certificates; the coordinator writes it.
        broker_reload: command that makes an external broker read it again.
        crl_days: how long the list lasts; it is made anew every day, and a broker with an old one lets nobody in.
        smallest_cohort: results of fewer devices are never reported.
        certificate_days: how long a device's certificate lasts; it renews it when a third of that is left.
        renewal_grace_days: how long after its end a device may still renew it, over HTTPS and with its key.
        token_hours: how long an enrolment token lasts.
        max_jobs: jobs that run side by side.
    """

    api_port: int
    broker_port: int
    mode: Literal["laptop", "production"] = "laptop"
    host: str = "127.0.0.1"
    broker: Literal["embedded", "mosquitto", "external"] = "embedded"
    broker_host: str = ""
    broker_crl: str = ""
    broker_reload: list[str] = []
    crl_days: int = 30
    database: str = ""
    blobs: str = ""
    smallest_cohort: int = 10
    certificate_days: int = 30
    renewal_grace_days: int = 30
    token_hours: int = 24
    max_jobs: int = 2
    drift: Drift = Drift()
    policy: Policy = Policy()

    def database_url(self, state: Path) -> str:
        """SQLAlchemy URL, with the default filled in."""
        return self.database or f"sqlite:///{(state / 'coordinator.sqlite').resolve()}"

    def blobs_url(self, state: Path) -> str:
        """URL for fsspec, with the default filled in."""
        return self.blobs or f"file://{(state / 'blobs').resolve()}"


def load(state: Path) -> Config:
    """Read the configuration of a state folder.

    Raises:
        SetupError: no such file, not TOML, or a key that does not belong; the message names file and key.
    """
    path = state / FILE
    try:
        return msgspec.toml.decode(path.read_bytes(), type=Config)
    except FileNotFoundError as error:
        raise SetupError(f"{path}: no coordinator here; start one with: fieldfare serve --state {state}") from error
    except msgspec.DecodeError as error:
        raise SetupError(f"{path}: {error}") from error


def save(state: Path, config: Config) -> None:
    """Write the configuration, readable by its owner alone."""
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(state / FILE, msgspec.toml.encode(config))
