"""Stage `prune`: weights of small magnitude become zero (Zhu & Gupta 2017, arXiv:1710.01878)."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from compression import tuning
from compression.errors import UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece

_UPDATES = 50  # of the masks, over the whole of pruning


class Prune(Stage, frozen=True, kw_only=True, tag="prune"):
    """Magnitude pruning while fine-tuning.

    A layer that the pattern does not fit stays dense, and the record names it.

    Attributes:
        sparsity: part of each kernel's weights that becomes zero; 0.5 with the pattern 2:4, whatever is said.
        schedule: `polynomial` reaches the sparsity in the first half of the epochs, `constant` begins with it.
        pattern: `unstructured`, `2:4` (two of four neighbours in the direction that a kernel adds over), or `block`.
        block: rows and columns of a block, for kernels of dense layers alone.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    sparsity: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.6
    schedule: Literal["polynomial", "constant"] = "polynomial"
    pattern: Literal["unstructured", "2:4", "block"] = "unstructured"
    block: tuple[Annotated[int, msgspec.Meta(ge=1, le=64)], Annotated[int, msgspec.Meta(ge=1, le=64)]] = (1, 4)
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 8
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 1e-3

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        with tuning.quiet():
            import tensorflow_model_optimization as tfmot

            kinds = tfmot.sparsity.keras
            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            wrapped, dense = self._wrap(model, kinds, -(-len(bench.train.x) // tuning.BATCH))
            tuning.fit(
                wrapped,
                bench,
                f"pruning to {self._wanted():.0%} zeros",
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                callbacks=[kinds.UpdatePruningStep()],
            )
            sparse = kinds.strip_pruning(wrapped)
        notes = {"sparsity": round(tuning.sparsity(sparse), 4)}
        return sparse, notes | ({"left dense": dense} if dense else {})

    def _wanted(self) -> float:
        return 0.5 if self.pattern == "2:4" else self.sparsity

    def _wrap(self, model: Any, kinds: Any, steps_an_epoch: int) -> tuple[Any, list[str]]:
        """The model with masks around what can be pruned, and the names of layers that stay dense."""
        import tf_keras
        from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry

        steps = self.epochs * steps_an_epoch
        often = max(1, steps // _UPDATES)
        schedule = kinds.ConstantSparsity(self._wanted(), 0, frequency=often)
        if self.schedule == "polynomial":
            schedule = kinds.PolynomialDecay(0.0, self._wanted(), 0, max(1, steps // 2), frequency=often)
        options: dict[str, Any] = {"pruning_schedule": schedule}
        if self.pattern == "2:4":
            options["sparsity_m_by_n"] = (2, 4)
        elif self.pattern == "block":
            options["block_size"] = self.block
        dense: list[str] = []
        masked: list[str] = []

        def wrap(layer: Any) -> Any:
            if not any(len(weight.shape) >= 2 for weight in layer.trainable_weights):
                return layer
            if not PruneRegistry.supports(layer) or not self._fits(layer):
                dense.append(layer.name)
                return layer
            masked.append(layer.name)
            return kinds.prune_low_magnitude(layer, **options)

        try:
            wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
        except ValueError as error:
            raise UnsupportedLayerError(f"tfmot cannot prune the model: {error}") from error
        if not masked:
            raise UnsupportedLayerError(
                f"no layer takes the pattern {self.pattern}: {', '.join(dense) or 'the model has no kernels'}"
            )
        return wrapped, dense

    def _fits(self, layer: Any) -> bool:
        kernel = next(weight for weight in layer.trainable_weights if len(weight.shape) >= 2)
        if self.pattern == "2:4":
            return int(kernel.shape[-2]) % 4 == 0 and "Depthwise" not in type(layer).__name__
        return self.pattern == "unstructured" or len(kernel.shape) == 2
