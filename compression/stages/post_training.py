"""Stages that turn a model into an artifact without training: float, or integers by representative samples."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec

from compression.lanes import torch_lane
from compression.stage import Form, Stage, Workbench, Workpiece

_Samples = Annotated[int, msgspec.Meta(ge=1)]


class Float(Stage, frozen=True, kw_only=True, tag="float"):
    """Float32 weights and activations."""

    gives: ClassVar[Form] = "artifact"

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage("converting to float")
        if isinstance(piece.model, torch_lane.TorchModel):
            return torch_lane.convert(piece.model, "float", bench), {"by": "litert-torch"}
        from compression import convert

        return convert.to_float(piece.model), {}


class Float16(Stage, frozen=True, kw_only=True, tag="float16"):
    """Float16 weights, computed in float32."""

    gives: ClassVar[Form] = "artifact"

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        from compression import convert

        torch_lane.refuse(bench.task, "float16")
        bench.on_stage("converting to float16")
        return convert.to_float16(piece.model), {}


class Dynamic(Stage, frozen=True, kw_only=True, tag="dynamic"):
    """Int8 weights; activations are quantized as they come. It can be slower than float on depthwise convolutions."""

    gives: ClassVar[Form] = "artifact"

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        from compression import convert

        torch_lane.refuse(bench.task, "dynamic")
        bench.on_stage("quantizing weights to int8")
        return convert.to_dynamic(piece.model), {}


class Int8(Stage, frozen=True, kw_only=True, tag="int8"):
    """Full-integer: weights and activations are int8 (Jacob et al. 2018, arXiv:1712.05877).

    Attributes:
        io: type of input and output.
        samples: representative ones, of the training part, evenly spaced.
    """

    gives: ClassVar[Form] = "artifact"

    io: Literal["int8", "float"] = "int8"
    samples: _Samples = 200

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage("quantizing to int8")
        if isinstance(piece.model, torch_lane.TorchModel):
            if self.io != "int8":
                torch_lane.refuse(bench.task, 'io = "float" of int8')
            return torch_lane.convert(piece.model, "int8", bench, samples=self.samples), {"by": "litert-torch, PT2E"}
        from compression import convert

        return convert.to_int8(piece.model, bench.train.spread(self.samples), io=self.io), {}


class Int16x8(Stage, frozen=True, kw_only=True, tag="int16x8"):
    """Int8 weights and int16 activations, for models that int8 activations hurt; slow without kernels of its own.

    Attributes:
        samples: representative ones, of the training part, evenly spaced.
    """

    gives: ClassVar[Form] = "artifact"

    samples: _Samples = 200

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        from compression import convert

        torch_lane.refuse(bench.task, "int16x8")
        bench.on_stage("quantizing to int8 weights and int16 activations")
        return convert.to_int16x8(piece.model, bench.train.spread(self.samples)), {}
