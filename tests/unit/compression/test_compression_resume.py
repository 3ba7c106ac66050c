"""A compress job that was killed goes on with what it had decided itself, and with nothing of another job."""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compression import job
from compression.shipping import Decision
from contract.training import TensorSpec, TrainingSpec
from coordinator.client import JobContext

SPEC = TrainingSpec(batch=32, weights=[TensorSpec("kernel", [2, 2])], state=[])
DECISION = Decision(
    variants=["float", "int8"],
    chosen="int8",
    refused="",
    training="",
    report={"html": "c" * 64},
    recipe={
        "parts": {"inference": "a" * 64},
        "labels": ["no", "yes"],
        "temperature": 1.5,
        "golden_tolerance": 0.1,
        "training": msgspec.to_builtins(SPEC),
        "hardware_classes": [],
    },
    seconds=3.0,
)


@dataclasses.dataclass
class Registry:
    """Says which bundle it was asked for; a version that was fetched would be a compression begun anew."""

    asked: list[Any] = dataclasses.field(default_factory=list)

    def create_bundle(self, *of: Any, **recipe: Any) -> dict[str, str]:
        self.asked.append((of, recipe))
        return {"sha256": "b" * 64}

    def get_version(self, *_of: Any) -> None:
        raise LookupError("begun anew")


def context(folder: Path, *, resumed: bool) -> tuple[JobContext, Registry]:
    client = Registry()
    spec = {"model": "digits", "version": 1}
    made = JobContext(
        id="compress-1",
        spec=spec,
        folder=folder,
        state=folder,
        client=client,  # type: ignore[arg-type]  # the two methods that matter
        resumed=resumed,
        report=lambda _fraction, _message: None,
    )
    return made, client


@pytest.mark.parametrize("training", [SPEC, None])
def test_a_killed_job_asks_for_the_very_bundle_that_it_had_decided_on(
    tmp_path: Path, training: TrainingSpec | None
) -> None:
    given, client = context(tmp_path, resumed=True)
    recipe = (DECISION.recipe or {}) | {"training": msgspec.to_builtins(training)}
    msgspec.structs.replace(DECISION, recipe=recipe).write(given.folder)

    result = job.run(given)

    assert client.asked == [(("digits", 1, "int8"), recipe | {"training": training})]
    assert result == {
        "variants": ["float", "int8"],
        "chosen": "int8",
        "refused": "",
        "bundle": {"sha256": "b" * 64},
        "training": "",
        "report": {"html": "c" * 64},
        "seconds": 3.0,
    }


@pytest.mark.parametrize("resumed", [True, False])
def test_a_job_that_had_decided_nothing_begins_anew(tmp_path: Path, resumed: bool) -> None:
    given, client = context(tmp_path, resumed=resumed)
    if not resumed:
        DECISION.write(given.folder)
    with pytest.raises(LookupError, match="begun anew"):
        job.run(given)
    assert client.asked == []
