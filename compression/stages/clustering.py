"""Stage `cluster`: kernels share a few values (Han et al. 2016, arXiv:1510.00149, section 3)."""

from typing import Annotated, Any, ClassVar

import msgspec
import numpy as np

from compression import tuning
from compression.errors import UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece


class Cluster(Stage, frozen=True, kw_only=True, tag="cluster"):
    """Weight clustering while fine-tuning; zeros of an earlier pruning stay zero.

    A layer with no more weights than it may keep values stays as it is, and the record names it.

    Attributes:
        clusters: different values that each kernel keeps.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    clusters: Annotated[int, msgspec.Meta(ge=2, le=256)] = 16
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 3
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 3e-4

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        with tuning.quiet():
            import tensorflow_model_optimization as tfmot
            import tf_keras
            from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

            kinds = tfmot.clustering.keras
            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            alone: list[str] = []

            def wrap(layer: Any) -> Any:
                kernels = [np.asarray(weight) for weight in layer.trainable_weights if len(weight.shape) >= 2]
                if not kernels:
                    return layer
                values = min(np.count_nonzero(kernel) for kernel in kernels)
                if values <= self.clusters:  # it has no more values than it may keep
                    alone.append(layer.name)
                    layer.trainable = False  # without a wrapper it would lose the zeros of an earlier pruning
                    return layer
                try:
                    return cluster.cluster_weights(
                        layer,
                        number_of_clusters=self.clusters,
                        cluster_centroids_init=kinds.CentroidInitialization.KMEANS_PLUS_PLUS,
                        preserve_sparsity=piece.did("prune"),
                    )
                except ValueError as error:
                    kind = type(layer).__name__
                    raise UnsupportedLayerError(
                        f"tfmot cannot cluster layer {layer.name!r} ({kind}): {error}"
                    ) from error

            wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
            what = f"clustering to {self.clusters} values"
            tuning.fit(wrapped, bench, what, epochs=self.epochs, learning_rate=self.learning_rate)
            clustered = kinds.strip_clustering(wrapped)
            for name in alone:
                clustered.get_layer(name).trainable = True
        notes = {"sparsity": round(tuning.sparsity(clustered), 4), "values": tuning.most_values(clustered)}
        return clustered, notes | ({"left alone": alone} if alone else {})
