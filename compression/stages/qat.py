"""Stages `qat` and `fine-tune`: training that knows of the integers to come, and plain further training beside it."""

import re
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from compression import tuning
from compression.errors import UnsupportedLayerError
from compression.stage import Stage, Workbench, Workpiece


class Qat(Stage, frozen=True, kw_only=True, tag="qat"):
    """Quantization-aware training for int8 (Jacob et al. 2018, arXiv:1712.05877, section 3); end with `int8`.

    Attributes:
        preserve: `auto` keeps the zeros of `prune` and the shared values of `cluster` where they are behind it (PQAT,
            CQAT, PCQAT); `none` lets them go.
        unknown: a layer that tfmot has no integer form for: `refuse`, or `skip` this stage, so that the model is
            quantized after training alone; the record says so.
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    preserve: Literal["auto", "none"] = "auto"
    unknown: Literal["refuse", "skip"] = "refuse"
    epochs: Annotated[int, msgspec.Meta(ge=1)] = 3
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 3e-4

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        with tuning.quiet():
            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            try:
                aware = self._aware(model, piece)
            except UnsupportedLayerError as error:
                if self.unknown == "refuse":
                    raise UnsupportedLayerError(
                        f"quantization-aware training: {error}; leave qat out and quantize after training"
                    ) from error
                return tuning.copy(tuning.tf_keras_model(piece, bench)), {"skipped": str(error)}
            what = f"training for int8{self._keeping(piece)}"
            tuning.fit(aware, bench, what, epochs=self.epochs, learning_rate=self.learning_rate)
        return aware, {"keeps": self._keeping(piece).removeprefix(", keeping ") or "nothing"}

    def _keeping(self, piece: Workpiece) -> str:
        kept = [word for stage, word in (("prune", "zeros"), ("cluster", "shared values")) if self._keeps(piece, stage)]
        return f", keeping {' and '.join(kept)}" if kept else ""

    def _keeps(self, piece: Workpiece, stage: str) -> bool:
        return self.preserve == "auto" and piece.did(stage)

    def _aware(self, model: Any, piece: Workpiece) -> Any:
        import tensorflow_model_optimization as tfmot

        kinds, schemes = tfmot.quantization.keras, tfmot.experimental.combine
        sparse, clustered = self._keeps(piece, "prune"), self._keeps(piece, "cluster")
        try:
            noted = kinds.quantize_annotate_model(model)
            if clustered:
                scheme = schemes.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)
            elif sparse:
                scheme = schemes.Default8BitPrunePreserveQuantizeScheme()
            else:
                return kinds.quantize_apply(noted)
            return kinds.quantize_apply(noted, scheme)
        except (ValueError, RuntimeError) as error:
            raise UnsupportedLayerError(_at_fault(error)) from error


class FineTune(Stage, frozen=True, kw_only=True, tag="fine-tune"):
    """Further training and nothing else: what the other stages' extra epochs would have given alone.

    Attributes:
        epochs: passes over the training samples at `learning_rate` (Adam).
    """

    trains: ClassVar[bool] = True

    epochs: Annotated[int, msgspec.Meta(ge=1)] = 3
    learning_rate: Annotated[float, msgspec.Meta(gt=0, lt=10)] = 3e-4

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        with tuning.quiet():
            model = tuning.copy(tuning.tf_keras_model(piece, bench))
            tuning.fit(model, bench, "fine-tuning", epochs=self.epochs, learning_rate=self.learning_rate)
        return model, {}


def _at_fault(error: Exception) -> str:
    """What tfmot says, with the layer as our other messages name one."""
    named = re.search(r"Layer (\S+):<class '\S*?(\w+)'>", str(error))
    if named:
        return f"layer {named[1]!r} ({named[2]}) has no integer form in tfmot"
    return str(error).strip().partition("\n")[0][:300]
