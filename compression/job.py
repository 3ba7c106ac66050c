"""Job kind `compress`: make a version's variants, measure them, let the gates choose, report, build the bundle."""

import hashlib
import logging
import time
from importlib import metadata
from typing import Annotated, Any

import msgspec

from cloud.learning import weights
from cloud.learning.backend import use_tensorflow
from compression import bench, candidate, gate, recipe, shipping, source
from compression.candidate import Candidate
from compression.errors import ConversionError, GateError, RecipeError, UnsupportedLayerError
from compression.gate import Gates
from compression.lanes.torch_lane import TorchModel
from compression.measure import Judge
from compression.recipe import Recipe
from compression.report.content import Content, VariantEntry
from compression.search import budget, outcome, study
from compression.search.outcome import Outcome
from compression.search.study import OnProgress
from compression.shipping import Decision, Training
from compression.source import Source
from compression.stages.post_training import Float
from coordinator.client import Gate, JobContext, Version

logger = logging.getLogger(__name__)
_SEARCH_PARTS = 100  # of progress: nearly all of it
FLOAT = "float"  # the variant that the others are compared with
_PACKAGES = ("tensorflow", "keras", "tf_keras", "tensorflow-model-optimization", "ai-edge-quantizer", "ai-edge-litert")


class SearchSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to search.

    Attributes:
        budget: what an artifact may cost, see `compression.search.budget`.
        minutes: when no further trial begins.
        trials: so many at most.
        seed: of everything that is drawn.
    """

    budget: str
    minutes: Annotated[float, msgspec.Meta(gt=0)] = 15.0
    trials: Annotated[int, msgspec.Meta(ge=1)] = 200
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] = 0


class CompressSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to compress.

    Attributes:
        model, version: in the registry.
        task: instead of the version's own.
        recipes: names of ready recipes, or whole recipes as they stand in a TOML file; the float variant that they are
            compared with is always made.
        search: look for recipes beside those; its Pareto front becomes variants.
        gates: fields of `compression.gate.Gates`, which hold beside those that the registry keeps for the model.
        hardware_classes: that may run the bundle; empty means any.
    """

    model: str
    version: int
    task: str = ""
    recipes: tuple[str | dict[str, Any], ...] = ("int8", "pruned-clustered-int8")
    search: SearchSpec | None = None
    gates: dict[str, Any] = {}
    hardware_classes: list[str] = []


def run(context: JobContext) -> dict[str, Any]:
    """Compress; the answer is that of `compression.shipping.ship`.

    Every variant is registered with what was measured, also where none may ship: then there is no bundle, and
    `refused` says why.

    Raises:
        CompressionError: a wrong specification, or a model that cannot be converted.
    """
    spec, recipes, gates = _spec(context.spec)
    done = Decision.read(context.folder) if context.resumed else None
    if done is not None:
        return shipping.ship(context.client, spec.model, spec.version, done)
    started = time.monotonic()
    context.report(0.02, "fetching the version")
    origin = source.load(context.client, spec.model, spec.version, spec.task)
    own = context.client.gates(spec.model)
    if own is not None:
        gates = gate.stricter(own, gates) if spec.gates else own
    check_data(origin, recipes)
    check_lane(origin, spec)
    if origin.task.framework == "keras":
        context.report(0.05, "loading TensorFlow")
        use_tensorflow()
    parts = sum(len(each.stages) for each in recipes) + len(recipes) + 2
    stages = _Progress(context, stages=parts + (_SEARCH_PARTS if spec.search else 0))
    model = _model(origin)
    candidates, found = _candidates(context, spec, recipes=recipes, model=model, origin=origin, stages=stages)
    stages.begin("exporting the training signature")
    training = _training(model)
    measured = {name: bench.newest(context.client.measurements(each.sha256)) for name, each in candidates.items()}
    content, chosen, refused = _decide(
        origin, candidates, measured, gates=gates, search=spec.search, found=found, training=training
    )
    content = msgspec.structs.replace(content, seconds=round(time.monotonic() - started, 1))
    for each in content.variants:
        notes = [] if gates.require_measurement else bench.missing(gates, measured[each.name], gate.LOCAL)
        _register(context, spec, candidates[each.name], each, notes)
    stages.begin(f"building the bundle of {chosen}" if chosen else "writing the report")
    bundle = None
    if chosen:
        chosen_one = candidates[chosen]
        bundle = shipping.bundle_recipe(context.client, origin, chosen_one, training, spec.hardware_classes)
    decision = Decision(
        variants=list(candidates),
        chosen=chosen,
        refused=refused,
        training=training.refused,
        recipe=bundle,
        report=_report(context, content),
        seconds=round(time.monotonic() - started, 1),
    )
    decision.write(context.folder)
    logger.info("%s:%d: chose %s of %s in %.1f s", spec.model, spec.version, chosen, list(candidates), decision.seconds)
    return shipping.ship(context.client, spec.model, spec.version, decision)


def _spec(fields: dict[str, Any]) -> tuple[CompressSpec, list[Recipe], Gates]:
    """The specification, its recipes with the float one first, and its gates."""
    try:
        spec = msgspec.convert(fields, CompressSpec)
    except msgspec.ValidationError as error:
        raise RecipeError(f"specification of a compress job: {error}") from error
    given = [
        recipe.load(each) if isinstance(each, str) else recipe.from_fields(each, f"recipes[{index}]")
        for index, each in enumerate(spec.recipes)
    ]
    recipes = [Recipe(name=FLOAT, description="what the others are compared with", stages=[Float()]), *given]
    names = [each.name for each in recipes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"specification of a compress job: two recipes make {twice[0]!r}; give them other names")
    if spec.search is not None:
        budget.parse(spec.search.budget)
    return spec, recipes, gate.from_fields(spec.gates, "specification of a compress job")


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


def check_lane(origin: Source, spec: CompressSpec) -> None:
    """What works on Keras models alone is refused before anything is made.

    Raises:
        UnsupportedLayerError: a search over a torch task.
    """
    if origin.task.framework == "torch" and spec.search is not None:
        raise UnsupportedLayerError(
            f"search works on Keras models, and {origin.task.name} is a torch task; follow recipes, for example int8"
        )


def _model(origin: Source) -> Any:
    """A Keras model that holds the version's weights, or what a torch task's module is built from."""
    if origin.task.framework == "torch":
        return TorchModel(origin.task, origin.weights)
    model = weights.build(origin.task, seed=0)
    weights.put(model, origin.weights)
    return model


def _candidates(
    context: JobContext, spec: CompressSpec, *, recipes: list[Recipe], model: Any, origin: Source, stages: "_Progress"
) -> tuple[dict[str, Candidate], Outcome | None]:
    """Every variant by name, the float one first, and what the search found where there was one."""
    folder = context.folder / "variants"
    folder.mkdir(exist_ok=True)
    found: dict[str, Candidate] = {}
    judge = None
    for each in recipes:
        stages.begin(f"making {each.name}", parts=len(each.stages))
        content, records = candidate.make(each, model, origin, folder, stages.tell)
        check_name_is_free(origin.version, each.name, content)
        judge = judge or Judge(origin, content)
        stages.begin(f"measuring {each.name} in LiteRT")
        report = judge.test(judge.validation(content), content)
        found[each.name] = Candidate(each, content, records, report)
    if spec.search is None or judge is None:
        return found, None
    stages.begin("searching", parts=_SEARCH_PARTS)
    result = study.run(
        origin,
        judge,
        budget.parse(spec.search.budget),
        folder=context.folder / "search",
        seconds=60 * spec.search.minutes,
        trials=spec.search.trials,
        seed=spec.search.seed,
        on_progress=stages.within(_SEARCH_PARTS),
    )
    for member in result.kept:
        # A trial's number says nothing to the next search, so that a variant is named by its artifact too.
        name = f"{member.recipe.name}-{hashlib.sha256(member.content).hexdigest()[:8]}"
        named = msgspec.structs.replace(member.recipe, name=name)
        found[name] = Candidate(named, member.content, member.records, member.report)
    return found, result


def check_name_is_free(version: Version, name: str, content: bytes) -> None:
    """Whether an artifact may become the variant of this name: what a bundle holds stays what it is.

    Raises:
        RecipeError: a bundle holds another artifact under it.
    """
    held = {each.variant for each in version.bundles}
    digest = hashlib.sha256(content).hexdigest()
    if any(each.name == name and name in held and each.tflite_sha256 != digest for each in version.variants):
        raise RecipeError(
            f"recipe {name}: {version.model}:{version.version} has a variant of that name with another artifact in a "
            "bundle; give the recipe another name"
        )


def _decide(
    origin: Source,
    candidates: dict[str, Candidate],
    measured: dict[str, dict[str, float]],
    *,
    gates: Gates,
    search: SearchSpec | None,
    found: Outcome | None,
    training: Training,
) -> tuple[Content, str | None, str]:
    """What the report says, the chosen variant if one may ship, and why none may.

    Where a budget was given, only what meets it is chosen.
    """
    reports = {name: each.report for name, each in candidates.items()}
    allowed = None if search is None else budget.parse(search.budget)
    if allowed is not None:
        reports = {n: r for n, r in reports.items() if not budget.excesses(allowed, msgspec.structs.asdict(r))}
    reasons = {name: gate.reasons(each.report, gates, measured[name]) for name, each in candidates.items()}
    passed = {
        name
        for name, each in candidates.items()
        if gate.overridden(origin.version.overrides, name, each.sha256, reasons[name])
    }
    chosen, refused = None, ""
    try:
        chosen = gate.choose(reports, gates, measured, overridden=passed)
    except GateError as error:
        refused = str(error) if reports or found is None else found.shortfall
    entries = []
    for name, each in candidates.items():
        why = reasons[name]
        entries.append(
            VariantEntry(
                name=name,
                recipe=msgspec.to_builtins(each.recipe),
                records=list(each.records),
                report=msgspec.to_builtins(each.report),
                passed=not why,
                reasons=why,
                overridden=name in passed,
            )
        )
    content = Content(
        model=origin.version.model,
        version=origin.version.version,
        task=origin.task.name,
        snapshot_sha256=origin.version.snapshot_sha256,
        gates=msgspec.to_builtins(gates),
        variants=entries,
        chosen=chosen,
        refused=refused,
        training=training.refused,
        search=None if found is None or allowed is None else outcome.for_report(found, allowed),
        seconds=0.0,
        environment={name: metadata.version(name) for name in _PACKAGES},
    )
    return content, chosen, refused


def _report(context: JobContext, content: Content) -> dict[str, str]:
    """Store the report: what it is made from, the page and the picture."""
    from compression.report import page, plots

    made = {"content": msgspec.json.encode(content), "html": page.html(content).encode(), "png": plots.png(content)}
    return {kind: context.client.put_blob(data).sha256 for kind, data in made.items()}


class _Progress:
    """Parts of the work to fractions: what is done when the next one begins."""

    def __init__(self, context: JobContext, *, stages: int) -> None:
        self._context = context
        self._stages = stages + 2
        self._begun, self._fraction = 0, 0.1

    def begin(self, message: str, *, parts: int = 1) -> None:
        """Something begins that is so many parts of the work."""
        self._fraction = 0.1 + 0.9 * min(1.0, self._begun / self._stages)
        self._begun += parts
        self.tell(message)

    def within(self, parts: int) -> OnProgress:
        """For something of so many parts that tells its own fraction."""
        start = self._fraction

        def tell(fraction: float, phrase: str, best: str) -> None:
            self._fraction = start + 0.9 * fraction * parts / self._stages
            self.tell(f"{phrase} (best so far: {best})" if best else phrase)

        return tell

    def tell(self, message: str) -> None:
        """Something begins within it."""
        self._context.report(self._fraction, message)
        logger.info("%s", message)


def _training(model: Any) -> Training:
    """A model that no device can train still gets a bundle, for inference alone."""
    if isinstance(model, TorchModel):
        return Training(None, None, f"{model.task.name} is a torch task; training on devices needs a Keras model")
    from compression import training_export

    try:
        content, spec = training_export.export(model)
    except (UnsupportedLayerError, ConversionError) as error:
        logger.warning("no training signature: %s", error)
        return Training(None, None, str(error))
    return Training(content, spec)


def _register(context: JobContext, spec: CompressSpec, made: Candidate, entry: VariantEntry, notes: list[str]) -> None:
    context.client.create_variant(
        spec.model,
        spec.version,
        name=made.name,
        tflite_sha256=context.client.put_blob(made.content).sha256,
        report=entry.report | {"recipe": entry.recipe, "records": msgspec.to_builtins(entry.records)},
        gate=Gate(passed=entry.passed, reasons=entry.reasons, notes=notes),
    )
