"""Stage `low-rank`: a dense layer as two thin ones (Denton et al. 2014, arXiv:1404.0736, section 3)."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from compression import tuning
from compression.channels import cost
from compression.errors import RecipeError, UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece


class LowRank(Stage, frozen=True, kw_only=True, tag="low-rank"):
    """Factors of dense kernels by singular values, where that saves weights, then fine-tuning.

    Attributes:
        energy: part of the sum of squared singular values that each kernel keeps.
        rank: instead, the rank as a fraction of the full one, which is the smaller side of a kernel.
        layers: dense layers to look at; none is all.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    energy: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    rank: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    layers: list[str] = msgspec.field(default_factory=list)
    epochs: Annotated[int, msgspec.Meta(ge=0)] = 3
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 3e-4

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage("factoring dense layers")
        with tuning.quiet():
            model = tuning.tf_keras_model(piece, bench)
            ranks, left = self._ranks(model)
            thin = factored(model, ranks)
            if self.epochs:
                tuning.fit(thin, bench, epochs=self.epochs, learning_rate=self.learning_rate)
        before, after = cost(model), cost(thin)
        return thin, {"ranks": ranks, "left": left, **{what: [before[what], after[what]] for what in before}}

    def _ranks(self, model: Any) -> tuple[dict[str, int], list[str]]:
        """Ranks of the layers that become smaller by it, and names of those that stay."""
        dense = {layer.name: layer.get_weights()[0] for layer in model.layers if type(layer).__name__ == "Dense"}
        for name in self.layers:
            if name not in dense:
                near = difflib.get_close_matches(name, dense, n=1) or list(dense)
                raise RecipeError(f"low-rank.layers: no dense layer {name!r}; there is {', '.join(near) or 'none'}")
        shared = _shared(model)
        taken = sorted(shared.intersection(self.layers))
        if taken:
            raise UnsupportedLayerError(
                f"{taken[0]}: is used more than once, which low-rank cannot follow; leave it out"
            )
        ranks, left = {}, []
        for name in self.layers or dense:
            rank = self._rank(name, dense[name])
            if name not in shared and rank * sum(dense[name].shape) < dense[name].size:
                ranks[name] = rank
            else:
                left.append(name)
        return ranks, left

    def _rank(self, name: str, kernel: np.ndarray) -> int:
        if not np.isfinite(kernel).all():
            raise UnsupportedLayerError(f"{name}: its kernel holds NaN or infinity; train the version again")
        if self.rank is not None:
            return max(1, round(self.rank * min(kernel.shape)))
        energy = np.linalg.svd(kernel.astype(np.float64), compute_uv=False) ** 2
        reached = np.cumsum(energy) >= self.energy * energy.sum() * (1 - 1e-12)
        return int(np.argmax(reached)) + 1


def _shared(model: Any) -> set[str]:
    """Names of layers that a model uses more than once."""
    entries = model.get_config()["layers"]
    return {entry["config"]["name"] for entry in entries if len(entry.get("inbound_nodes", ())) > 1}


def factored(model: Any, ranks: Mapping[str, int]) -> Any:
    """A tf_keras model in which dense layers are two: one without bias and activation, then one of the old name.

    Args:
        model: tf_keras, functional or sequential; not changed.
        ranks: dense layer to the width between its two.

    Returns:
        Kernels U sqrt(S) and sqrt(S) V of the largest singular values; all other weights as they were.
    """
    config = model.get_config()
    used = {layer.name for layer in model.layers}
    firsts: dict[str, str] = {}
    entries = []
    for entry in config["layers"]:
        entry.pop("build_config", None)  # it would build layers for the inputs that they had
        name = entry["config"].get("name")
        if name in ranks:
            firsts[name] = _free(f"{name}_low", used)
            entries.append(_first(entry, firsts[name], ranks[name]))
            if "inbound_nodes" in entry:  # functional: the old layer now reads the new one
                entry["inbound_nodes"] = [[[firsts[name], 0, 0, {}]]]
        entries.append(entry)
    made = type(model).from_config(config | {"layers": entries})
    for layer in model.layers:
        arrays = layer.get_weights()
        if layer.name in firsts:
            first, arrays[0] = _factors(arrays[0], ranks[layer.name])
            made.get_layer(firsts[layer.name]).set_weights([first])
        made.get_layer(layer.name).set_weights(arrays)
    return made


def _first(entry: dict[str, Any], name: str, rank: int) -> dict[str, Any]:
    config = entry["config"] | {"name": name, "units": rank, "use_bias": False, "activation": "linear"}
    return entry | {"config": config} | ({"name": name} if "name" in entry else {})


def _free(name: str, used: set[str]) -> str:
    while name in used:
        name += "_low"
    used.add(name)
    return name


def _factors(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    left, values, right = np.linalg.svd(kernel.astype(np.float64), full_matrices=False)
    root = np.sqrt(values[:rank])
    return (left[:, :rank] * root).astype(np.float32), (root[:, None] * right[:rank]).astype(np.float32)
