"""Stages that turn a model into an artifact without training: float, or integers by representative samples."""

from typing import Any, ClassVar

from compression.stage import Form, Stage, Workbench, Workpiece


class Float(Stage, frozen=True, kw_only=True, tag="float"):
    """Float32 weights and activations."""

    gives: ClassVar[Form] = "artifact"

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        from compression import convert

        bench.on_stage("converting to float")
        return convert.to_float(piece.model), {}


class Int8(Stage, frozen=True, kw_only=True, tag="int8"):
    """Full-integer: weights, activations, input and output are int8 (Jacob et al. 2018, arXiv:1712.05877)."""

    gives: ClassVar[Form] = "artifact"

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        from compression import convert

        bench.on_stage("quantizing to int8")
        return convert.to_int8(piece.model, bench.train.x), {}
