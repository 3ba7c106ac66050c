"""Stage `cluster`: kernels share a few values (Han et al. 2016, arXiv:1510.00149, section 3)."""

from typing import Annotated, Any, ClassVar

import msgspec

from compression import tuning
from compression.errors import UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece


class Cluster(Stage, frozen=True, kw_only=True, tag="cluster"):
    """Weight clustering while fine-tuning; zeros of an earlier pruning stay zero.

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
            from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

            kinds = tfmot.clustering.keras
            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            try:
                wrapped = cluster.cluster_weights(
                    model,
                    number_of_clusters=self.clusters,
                    cluster_centroids_init=kinds.CentroidInitialization.KMEANS_PLUS_PLUS,
                    preserve_sparsity=piece.did("prune"),
                )
            except ValueError as error:
                raise UnsupportedLayerError(f"tfmot cannot cluster the model: {error}") from error
            what = f"clustering to {self.clusters} values"
            tuning.fit(wrapped, bench, what, epochs=self.epochs, learning_rate=self.learning_rate)
            clustered = kinds.strip_clustering(wrapped)
        notes = {"sparsity": round(tuning.sparsity(clustered), 4), "values": tuning.most_values(clustered)}
        return clustered, notes
