"""Stages by ai-edge-quantizer: integers of 8, 4 or 2 bits, layer by layer, from a float artifact; no training.

Four bits are fast in fully connected layers alone; convolutions of four bits are unpacked at each inference.
"""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from compression.quantizer import Rule
from compression.stage import Form, Stage, Workbench, Workpiece

_DENSE = "FULLY_CONNECTED"
_Samples = Annotated[int, msgspec.Meta(ge=1)]

FAST = (  # int4 where its kernel is fast
    Rule(operation="CONV_2D"),
    Rule(operation="DEPTHWISE_CONV_2D"),
    Rule(operation=_DENSE, bits=4),
)


class _EdgeStage(Stage, frozen=True, kw_only=True):
    """A float artifact to one with integers."""

    takes: ClassVar[Form] = "artifact"
    gives: ClassVar[Form] = "artifact"


class Mixed(_EdgeStage, frozen=True, kw_only=True, tag="mixed"):
    """Each operation by the last rule that fits it and that it can follow; what no rule fits stays float.

    Attributes:
        rules: in order.
        samples: representative ones, where a rule is static.
    """

    rules: tuple[Rule, ...] = FAST
    samples: _Samples = 200

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        return _quantize(piece, bench, self.rules, "quantizing layer by layer", self.samples)


class WeightOnly(_EdgeStage, frozen=True, kw_only=True, tag="weight-only"):
    """Integer weights that are turned into float for computing: smaller, as right, not faster.

    Attributes:
        bits: of weights; convolutions of 4 are slow, see `mixed` for 4 in fully connected layers alone.
    """

    bits: Literal[4, 8] = 8

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        rules = (Rule(compute="weight-only", bits=self.bits),)
        return _quantize(piece, bench, rules, f"quantizing weights to {self.bits} bits")


class EdgeDynamic(_EdgeStage, frozen=True, kw_only=True, tag="edge-dynamic"):
    """Integer weights; activations are quantized as they come. Kernels of few weights, too, unlike `dynamic`.

    Attributes:
        bits: of fully connected layers' weights; others have 8.
    """

    bits: Literal[4, 8] = 8

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        rules = (Rule(), Rule(operation=_DENSE, bits=self.bits))
        return _quantize(piece, bench, rules, f"quantizing weights to {self.bits} bits")


class EdgeStatic(_EdgeStage, frozen=True, kw_only=True, tag="edge-static"):
    """Integer weights and activations, by representative samples.

    Attributes:
        bits: of fully connected layers' weights; others have 8.
        activation_bits: 16 are closer to float, and slow.
        io: whether input and output are integers, too.
        samples: representative ones, of the training part.
    """

    bits: Literal[4, 8] = 8
    activation_bits: Literal[8, 16] = 8
    io: Literal["integer", "float"] = "integer"
    samples: _Samples = 200

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        every = Rule(compute="static", activation_bits=self.activation_bits)
        rules = [every]
        if self.bits == 4:
            rules.append(msgspec.structs.replace(every, operation=_DENSE, bits=4))
        if self.io == "float":
            rules += [Rule(operation=end, compute="float") for end in ("INPUT", "OUTPUT")]
        what = f"quantizing weights to {self.bits} and activations to {self.activation_bits} bits"
        return _quantize(piece, bench, rules, what, self.samples)


def _quantize(
    piece: Workpiece, bench: Workbench, rules: Sequence[Rule], what: str, samples: int = 1
) -> tuple[bytes, dict[str, Any]]:
    from compression import quantizer

    bench.on_stage(what)
    made = quantizer.quantize(piece.artifact or b"", rules, bench.train.spread(samples))
    return made.content, {"recipe": made.recipe, "operations": made.changed}
