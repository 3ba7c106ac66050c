"""What one run is: its settings, and the few rules that follow from them."""

import hashlib
import math

import msgspec

from contract.training import Optimizer
from coordinator.errors import InvalidError


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of a run.

    Attributes:
        rounds: training rounds.
        epochs, learning_rate, optimizer, momentum, weight_decay, proximal_mu: of the local steps, as in
            `contract.training`; `proximal_mu` above zero makes it FedProx.
        fraction: share of the cohort that trains in a round.
        min_replies: fewest good replies of a round; 0 means two thirds of those asked. Never fewer than the
            coordinator's smallest cohort.
        round_timeout_s: seconds that a round waits for its replies.
        max_samples: most labelled samples that a device trains on.
        evaluate_samples: newest labelled samples of a device that are evaluated: what the new version's reference
            profile calls normal is what its cohort sees now, not what it saw before it drifted.
        seed: of the sampling of devices and of their shuffles.
    """

    rounds: int = 5
    epochs: int = 2
    learning_rate: float = 0.005
    optimizer: Optimizer = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    fraction: float = 1.0
    min_replies: int = 0
    round_timeout_s: float = 120.0
    max_samples: int = 100_000
    evaluate_samples: int = 500
    seed: int = 0


def check(config: RunConfig) -> RunConfig:
    """Return `config` if a run can follow it.

    Raises:
        InvalidError: naming the first setting outside its range.
    """
    ranges: list[tuple[str, float | str, bool]] = [
        ("rounds", config.rounds, 1 <= config.rounds <= 10_000),
        ("epochs", config.epochs, 1 <= config.epochs <= 1_000),
        ("learning_rate", config.learning_rate, 0 < config.learning_rate < math.inf),
        ("optimizer", config.optimizer, config.optimizer in {"sgd", "adam"}),
        ("momentum", config.momentum, 0 <= config.momentum < 1),
        ("weight_decay", config.weight_decay, 0 <= config.weight_decay < math.inf),
        ("proximal_mu", config.proximal_mu, 0 <= config.proximal_mu < math.inf),
        ("fraction", config.fraction, 0 < config.fraction <= 1),
        ("min_replies", config.min_replies, config.min_replies >= 0),
        ("round_timeout_s", config.round_timeout_s, 0 < config.round_timeout_s <= 86_400),
        ("max_samples", config.max_samples, 1 <= config.max_samples <= 100_000_000),
        ("evaluate_samples", config.evaluate_samples, 1 <= config.evaluate_samples <= 100_000_000),
        ("seed", config.seed, 0 <= config.seed < 2**31),
    ]
    for name, value, good in ranges:
        if not good:
            raise InvalidError(f"{name} = {value} is out of range")
    return config


def sample_size(config: RunConfig, cohort: int, *, smallest: int) -> int:
    """Devices asked in a round: `fraction` of the cohort, but never fewer than a result may come from."""
    return min(cohort, max(math.ceil(config.fraction * cohort), smallest, 1))


def quorum(config: RunConfig, asked: int, *, smallest: int) -> int:
    """Fewest good replies that make a round."""
    wanted = config.min_replies or math.ceil(asked * 2 / 3)
    return min(max(wanted, smallest, 1), asked)


def device_seed(seed: int, server_round: int, device: str) -> int:
    """Seed of one device's shuffle in one round: 31 bits of a SHA-256, the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{server_round}/{device}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
