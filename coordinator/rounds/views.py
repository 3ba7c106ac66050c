"""Runs as the API shows them."""

import msgspec

from coordinator import records
from coordinator.rounds.runs import RoundResult, Run


def run_record(run: Run, rounds: list[RoundResult] | None = None) -> records.Run:
    """A run, with its committed rounds where they are asked for."""
    return records.Run(
        id=run.id,
        model=run.model,
        base_version=run.version,
        cohort=f"name={','.join(run.cohort)}",
        config=msgspec.to_builtins(run.config),
        state=run.state,
        job=run.job,
        version=run.result_version,
        error=run.error or None,
        created_at=run.created_at,
        finished_at=run.finished_at,
        rounds=[_round(each) for each in rounds or []],
    )


def _round(result: RoundResult) -> records.Round:
    return records.Round(
        round=result.round,
        kind=result.kind,
        metrics=result.metrics,
        replies=result.replies,
        failures=len(result.failures),
        finished_at=result.finished_at,
    )
