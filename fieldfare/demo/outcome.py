"""What the demonstration found out: everything in the table, the report and the JSON file."""

from typing import Any

import msgspec


class Evaluation(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle on one set of images, by the runtime that devices use.

    Attributes:
        accuracy: share of right classes.
        estimated_accuracy: mean confidence, which needs no labels.
        samples: how many images.
    """

    accuracy: float
    estimated_accuracy: float
    samples: int


class Outcome(msgspec.Struct, kw_only=True):
    """All results, filled station by station; `seconds` by station."""

    devices: int
    broker: str
    drifting: list[str]
    smallest_cohort: int
    seed: int = 0
    version_1: dict[str, Any] = {}
    version_2: dict[str, Any] = {}
    variants: dict[str, dict[str, Any]] = {}
    bundle_1: dict[str, Any] = {}
    bundle_2: dict[str, Any] = {}
    rollouts: list[dict[str, Any]] = []
    drift_clean: dict[str, Any] = {}
    alert: dict[str, Any] = {}
    run: dict[str, Any] = {}
    drift_after: dict[str, Any] = {}
    drift_rebased: dict[str, Any] = {}
    clean: dict[str, Evaluation] = {}
    drifted: dict[str, Evaluation] = {}
    seconds: dict[str, float] = {}
