"""Job kind `compress`: make a version's variants, measure them, let the gate choose, build the bundle."""

import logging
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from cloud.learning import calibration, metrics, weights
from cloud.learning.backend import use_tensorflow
from compression import gate, recipe, source
from compression.errors import ConversionError, RecipeError, UnsupportedLayerError
from compression.gate import Report
from compression.recipe import Recipe
from compression.source import Source
from compression.stage import OnStage, Samples, Workbench, Workpiece
from compression.stages.post_training import Float
from contract import tensors
from contract.training import TrainingSpec
from coordinator.client import Gate, JobContext

logger = logging.getLogger(__name__)
FLOAT = "float"  # the variant that the others are compared with
_DECISION = "decision.json"  # in the job's folder


class CompressSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to compress.

    Attributes:
        model, version: in the registry.
        task: instead of the version's own.
        recipes: names of ready recipes, or whole recipes as they stand in a TOML file; the float variant that they are
            compared with is always made.
        max_drop: accuracy, from 0 to 1, that a variant may lose on the validation samples.
        hardware_classes: that may run the bundle; empty means any.
    """

    model: str
    version: int
    task: str = ""
    recipes: tuple[str | dict[str, Any], ...] = ("int8", "pruned-clustered-int8")
    max_drop: float = 0.02
    hardware_classes: list[str] = []


@dataclass(frozen=True)
class Training:
    """The training signature, or why there is none."""

    content: bytes | None
    spec: TrainingSpec | None
    refused: str = ""


@dataclass(frozen=True)
class Candidate:
    """A variant before the gate."""

    name: str
    content: bytes
    report: Report


def run(context: JobContext) -> dict[str, Any]:
    """Compress; the answer is `{"variants": [names], "chosen": name, "bundle": {...}, "training": reason or ""}`.

    Raises:
        CompressionError: a wrong specification, a model that cannot be converted, or no variant that may ship.
    """
    spec, recipes = _spec(context.spec)
    done = _Decision.read(context) if context.resumed else None
    if done is not None:
        return _ship(context, spec, done)
    started = time.monotonic()
    context.report(0.02, "fetching the version")
    origin = source.load(context.client, spec.model, spec.version, spec.task)
    check_data(origin, recipes)
    context.report(0.05, "loading TensorFlow")
    use_tensorflow()
    stages = _Progress(context, stages=sum(len(each.stages) for each in recipes) + 2)
    model = weights.build(origin.task, seed=0)
    weights.put(model, origin.weights)
    artifacts = {each.name: _make(each, model, origin, stages.begin) for each in recipes}
    stages.begin("exporting the training signature")
    training = _training(model)
    stages.begin("measuring in LiteRT")
    candidates = _measure(origin, artifacts)
    reports = {name: candidate.report for name, candidate in candidates.items()}
    chosen = gate.choose(reports, max_drop=spec.max_drop)
    for candidate in candidates.values():
        _register(context, spec, candidate)
    stages.begin(f"building the bundle of {chosen}")
    decision = _Decision(
        variants=list(artifacts),
        chosen=chosen,
        refused=training.refused,
        recipe=_recipe(context, spec, origin, candidates[chosen], training),
        seconds=round(time.monotonic() - started, 1),
    )
    decision.write(context)
    logger.info("%s:%d: chose %s of %s in %.1f s", spec.model, spec.version, chosen, list(artifacts), decision.seconds)
    return _ship(context, spec, decision)


def _spec(fields: dict[str, Any]) -> tuple[CompressSpec, list[Recipe]]:
    """The specification, and its recipes with the float one first."""
    try:
        spec = msgspec.convert(fields, CompressSpec)
    except msgspec.ValidationError as error:
        raise RecipeError(f"specification of a compress job: {error}") from error
    if not 0 <= spec.max_drop < 1:
        raise RecipeError(f"specification of a compress job: max_drop {spec.max_drop} is outside [0, 1)")
    given = [
        recipe.load(each) if isinstance(each, str) else recipe.from_fields(each, f"recipes[{index}]")
        for index, each in enumerate(spec.recipes)
    ]
    recipes = [Recipe(name=FLOAT, stages=[Float()]), *given]
    names = [each.name for each in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"specification of a compress job: two recipes make {twice[0]!r}; give them other names")
    return spec, recipes


def check_data(origin: Source, recipes: list[Recipe]) -> None:
    """Federated versions are not trained on the laboratory's samples: they would forget what the devices taught them.

    Raises:
        RecipeError: a recipe trains, and the version has no data of its own.
    """
    version = origin.version
    training = [each.name for each in recipes if each.trains]
    if version.snapshot_sha256 is None and training:
        raise RecipeError(
            f"recipe {training[0]!r} trains on labelled samples, and {version.model}:{version.version} comes from "
            "devices, which keep theirs; use recipes without training, for example int8"
        )


def _make(which: Recipe, model: Any, origin: Source, on_stage: OnStage) -> bytes:
    bench = Workbench(
        task=origin.task,
        weights=origin.weights,
        train=Samples(origin.train.x, origin.train.y),
        validation=Samples(origin.validation.x, origin.validation.y),
        seed=which.seed,
        on_stage=on_stage,
    )
    made = recipe.make(which, Workpiece(model), bench).artifact
    assert made is not None  # noqa: S101 a checked recipe ends with an artifact
    return made


class _Decision(msgspec.Struct, frozen=True):
    """What was chosen, with all that the registry needs to build the bundle: the same parts always make the same.

    It is written to the job's folder before the bundle is asked for, so that a job that is killed then neither
    measures again nor takes another job's bundle for its own.
    """

    variants: list[str]
    chosen: str
    refused: str
    recipe: dict[str, Any]
    seconds: float

    @classmethod
    def read(cls, context: JobContext) -> "_Decision | None":
        """What an earlier attempt of this job decided."""
        path = context.folder / _DECISION
        return msgspec.json.decode(path.read_bytes(), type=cls) if path.exists() else None

    def write(self, context: JobContext) -> None:
        part = context.folder / f"{_DECISION}.part"
        part.write_bytes(msgspec.json.encode(self))
        part.replace(context.folder / _DECISION)


def _ship(context: JobContext, spec: CompressSpec, decision: _Decision) -> dict[str, Any]:
    bundle = context.client.create_bundle(spec.model, spec.version, decision.chosen, **_typed(decision.recipe))
    return {
        "variants": decision.variants,
        "chosen": decision.chosen,
        "bundle": msgspec.to_builtins(bundle),
        "training": decision.refused,
        "seconds": decision.seconds,
    }


def _typed(recipe: dict[str, Any]) -> dict[str, Any]:
    return recipe | {"training": msgspec.convert(recipe["training"], TrainingSpec | None)}


class _Progress:
    """Stages to fractions: what is done when the next one begins."""

    def __init__(self, context: JobContext, *, stages: int) -> None:
        self._context = context
        self._stages = stages + 2
        self._begun = 0

    def begin(self, message: str) -> None:
        self._context.report(0.2 + 0.8 * min(1.0, self._begun / self._stages), message)
        logger.info("%s", message)
        self._begun += 1


def _training(model: Any) -> Training:
    """A model that no device can train still gets a bundle, for inference alone."""
    from compression import training_export

    try:
        content, spec = training_export.export(model)
    except (UnsupportedLayerError, ConversionError) as error:
        logger.warning("no training signature: %s", error)
        return Training(None, None, str(error))
    return Training(content, spec)


def _measure(origin: Source, artifacts: dict[str, bytes]) -> dict[str, Candidate]:
    from compression import evaluate
    from edge_agent.runtime import Runtime

    candidates: dict[str, Candidate] = {}
    base = float("nan")
    for name, content in artifacts.items():
        logits = Runtime(content).logits(origin.validation.x)
        found = metrics.accuracy(logits, origin.validation.y)
        base = found if name == FLOAT else base
        sizes, latency = evaluate.sizes(content), evaluate.latency(content, origin.test.x)
        report = Report(
            accuracy=evaluate.accuracy(content, origin.test.x, origin.test.y),
            validation_accuracy=found,
            drop=base - found,
            bytes=sizes.raw,
            gzip_bytes=sizes.gzip,
            zstd_bytes=sizes.zstd,
            p50_us=latency.p50_us,
            p95_us=latency.p95_us,
            temperature=origin.temperature or calibration.temperature(logits, origin.validation.y),
        )
        candidates[name] = Candidate(name, content, report)
    return candidates


def _register(context: JobContext, spec: CompressSpec, candidate: Candidate) -> None:
    reasons = gate.reasons(candidate.report, max_drop=spec.max_drop)
    context.client.create_variant(
        spec.model,
        spec.version,
        name=candidate.name,
        tflite_sha256=context.client.put_blob(candidate.content).sha256,
        report=msgspec.to_builtins(candidate.report),
        gate=Gate(passed=not reasons, reasons=reasons),
    )


def _recipe(
    context: JobContext, spec: CompressSpec, origin: Source, chosen: Candidate, training: Training
) -> dict[str, Any]:
    """The parts of the bundle, stored, and what its manifest says."""
    from compression import evaluate, parts

    client, content, temperature = context.client, chosen.content, chosen.report.temperature
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
        "golden_tolerance": parts.golden_tolerance(evaluate.output_step(content)),
        "training": msgspec.to_builtins(training.spec),
        "hardware_classes": spec.hardware_classes,
    }
