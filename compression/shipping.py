"""From the chosen variant to its bundle: the decision is written down before the registry is asked."""

from pathlib import Path
from typing import Any

import msgspec

from compression import measure, parts
from compression.candidate import Candidate, write
from compression.source import Source
from contract import tensors
from contract.training import TrainingSpec
from coordinator.client import Client

_FILE = "decision.json"  # in the job's folder


class Training(msgspec.Struct, frozen=True):
    """The training signature, or why there is none."""

    content: bytes | None
    spec: TrainingSpec | None
    refused: str = ""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What was chosen, with all that the registry needs to build the bundle: the same parts always make the same.

    It is written to the job's folder before the bundle is asked for, so that a job that is killed then neither
    measures again nor takes another job's bundle for its own.

    Attributes:
        chosen: variant, None where none may ship; `refused` says why.
        training: why there is no training signature, empty where there is one.
        recipe: of the bundle; None without a choice.
        report: digests of the report's blobs.
    """

    variants: list[str]
    chosen: str | None
    refused: str
    training: str
    recipe: dict[str, Any] | None
    report: dict[str, str]
    seconds: float

    @classmethod
    def read(cls, folder: Path) -> "Decision | None":
        """What an earlier attempt of this job decided."""
        path = folder / _FILE
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else None

    def write(self, folder: Path) -> None:
        """Write it down, whole or not at all."""
        write(folder / _FILE, msgspec.json.encode(self))


def ship(client: Client, model: str, version: int, decision: Decision) -> dict[str, Any]:
    """Ask for the bundle; the answer is the job's result."""
    bundle = None
    if decision.chosen is not None and decision.recipe is not None:
        typed = decision.recipe | {"training": msgspec.convert(decision.recipe["training"], TrainingSpec | None)}
        bundle = client.create_bundle(model, version, decision.chosen, **typed)
    return {
        "variants": decision.variants,
        "chosen": decision.chosen,
        "refused": decision.refused,
        "bundle": msgspec.to_builtins(bundle),
        "training": decision.training,
        "report": decision.report,
        "seconds": decision.seconds,
    }


def bundle_recipe(
    client: Client, origin: Source, chosen: Candidate, training: Training, hardware_classes: list[str]
) -> dict[str, Any]:
    """The parts of the bundle, stored, and what its manifest says."""
    content, temperature = chosen.content, chosen.report.temperature
    files = {
        "inference": content,
        "transform": origin.transform.spec.encode(),
        "golden": parts.golden(origin.validation, content),
    }
    if training.content is not None:
        files |= {"training": training.content, "weights": tensors.dump(origin.weights)}
    if origin.version.reference_sha256 is None:
        files["profile"] = parts.reference(
            origin.transform, content, temperature, edges=origin.train, seen=origin.validation
        )
    stored = {role: client.put_blob(data).sha256 for role, data in files.items()}
    if origin.version.reference_sha256 is not None:
        stored["profile"] = origin.version.reference_sha256
    return {
        "parts": stored,
        "labels": list(origin.task.labels),
        "temperature": temperature,
        "golden_tolerance": parts.golden_tolerance(measure.output_step(content)),
        "training": msgspec.to_builtins(training.spec),
        "hardware_classes": hardware_classes,
    }
