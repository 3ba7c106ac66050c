"""What a report tells: everything that a compression measured, as JSON, so that the page can be made again."""

from typing import Any

import msgspec

from compression.stage import Record


class VariantEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One variant.

    Attributes:
        recipe: that made it, as in its TOML file.
        records: what each stage did.
        report: fields of `compression.measure.Report`.
        passed, reasons: of the gates.
        overridden: whether a signed word lets it ship in spite of them.
    """

    name: str
    recipe: dict[str, Any]
    records: list[Record]
    report: dict[str, Any]
    passed: bool
    reasons: list[str]
    overridden: bool = False


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What a search did.

    Attributes:
        budget: as it was asked for.
        trials: each with `name`, `state` (complete, stopped, failed), `why`, and where known `zstd_bytes`,
            `validation_accuracy`, `p95_us`.
        front: names of the trials that no other one dominates.
        sensitivity: each with `layer`, `technique` and `drop`: validation accuracy lost where this layer alone gets it.
    """

    budget: str
    trials: list[dict[str, Any]]
    front: list[str]
    sensitivity: list[dict[str, Any]]


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report.

    Attributes:
        model, version: in the registry.
        snapshot_sha256: of the data; None for a federated version, which uses its ancestor's.
        gates: what a variant had to hold.
        chosen: the variant that became a bundle; None where none may ship, or none meets the budget.
        refused: why there is none then.
        training: why there is no training signature; empty where there is one.
        environment: versions of the packages that made the artifacts.
    """

    model: str
    version: int
    task: str
    snapshot_sha256: str | None
    gates: dict[str, Any]
    variants: list[VariantEntry]
    chosen: str | None
    training: str
    search: Search | None
    seconds: float
    environment: dict[str, str]
    refused: str = ""
