"""From parts to a bundle: pure, so that the same parts always give the same bundle."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from contract import bundle, targets
from contract.training import TrainingSpec
from coordinator import records
from coordinator.errors import ConflictError, InvalidError


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What a bundle is made from: `parts` is role to the digest of a blob, the rest as in the Manifest."""

    parts: Mapping[str, str]
    labels: Sequence[str]
    temperature: float
    golden_tolerance: float
    training: TrainingSpec | None = None
    hardware_classes: Sequence[str] = ()
    min_agent_version: str = "0.1.0"
    min_runtime_version: str = ""


def check(recipe: Recipe, version: records.Version, variant: records.Variant, *, overridden: bool = False) -> None:
    """Whether this variant may become this bundle.

    Args:
        recipe: of the bundle.
        version, variant: as registered.
        overridden: whether a signed override lets it pass that holds now.

    Raises:
        ConflictError: the variant did not pass its gate, and nothing overrides that.
        InvalidError: another artifact or another reference profile than the registered ones.
        BundleError: versions that are not numbers with dots.
    """
    name = f"{version.model}:{version.version} {variant.name}"
    if not variant.gate.passed and not overridden:
        raise ConflictError(
            f"{name} did not pass its gate: {'; '.join(variant.gate.reasons) or 'no reason given'}; "
            "a holder of a targets key can let it pass: fieldfare models override"
        )
    if recipe.parts.get("inference") != variant.tflite_sha256:
        raise InvalidError(f"{name}: the inference part must be its artifact {variant.tflite_sha256}")
    targets.check_versions(recipe.min_agent_version, recipe.min_runtime_version)
    wanted = version.reference_sha256
    if wanted is not None and recipe.parts.get("profile") != wanted:
        raise InvalidError(f"{name}: this version has its own reference profile; the profile part must be {wanted}")


def build(
    recipe: Recipe, version: records.Version, variant: records.Variant, read: Callable[[str], bytes]
) -> tuple[bytes, bundle.Manifest]:
    """The bundle's bytes and its manifest.

    Args:
        recipe: checked with `check`.
        version: its time is the manifest's, so that building again gives the same bytes.
        variant: of that version.
        read: digest to bytes.

    Raises:
        BundleError: parts that do not agree.
        NotFoundError: a part that is not stored.
    """
    manifest = bundle.Manifest(
        model=version.model,
        version=version.version,
        variant=variant.name,
        labels=list(recipe.labels),
        temperature=recipe.temperature,
        golden_tolerance=recipe.golden_tolerance,
        training=recipe.training,
        hardware_classes=sorted(set(recipe.hardware_classes)),
        min_agent_version=recipe.min_agent_version,
        min_runtime_version=recipe.min_runtime_version,
        created_at=int(version.created_at),
    )
    return bundle.pack(manifest, {role: read(digest) for role, digest in recipe.parts.items()}), manifest
