"""Stage `prune`: weights of small magnitude become zero (Zhu & Gupta 2017, arXiv:1710.01878)."""

from typing import Annotated, Any, ClassVar

import msgspec

from compression import tuning
from compression.errors import UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece


class Prune(Stage, frozen=True, kw_only=True, tag="prune"):
    """Magnitude pruning while fine-tuning.

    Attributes:
        sparsity: part of each kernel's weights that becomes zero.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    sparsity: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.6
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 8
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 1e-3

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage(f"pruning to {self.sparsity:.0%} zeros")
        with tuning.quiet():
            import tensorflow_model_optimization as tfmot

            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            steps = self.epochs * -(-len(bench.train.x) // tuning.BATCH)
            kinds = tfmot.sparsity.keras
            schedule = kinds.PolynomialDecay(0.0, self.sparsity, 0, max(1, steps // 2), frequency=5)
            try:
                wrapped = kinds.prune_low_magnitude(model, pruning_schedule=schedule)
            except ValueError as error:
                raise UnsupportedLayerError(f"tfmot cannot prune the model: {error}") from error
            tuning.fit(
                wrapped,
                bench,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                callbacks=[kinds.UpdatePruningStep()],
            )
            sparse = kinds.strip_pruning(wrapped)
        return sparse, {"sparsity": round(tuning.sparsity(sparse), 4)}
