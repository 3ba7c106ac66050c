"""Stages by ai-edge-quantizer: integers of 8, 4 or 2 bits, layer by layer, from a float artifact; no training.

Four bits are fast in fully connected layers alone; convolutions of four bits are unpacked at each inference.
"""

import json
import re
import warnings
from typing import Annotated, Any, ClassVar, Literal

import msgspec

from cloud.learning.backend import quiet_stderr
from compression import checks
from compression.errors import ConversionError, RecipeError
from compression.stage import Form, Stage, Workbench, Workpiece

Bits = Literal[2, 4, 8]
_BLOCKS = {"channel": "CHANNELWISE", "tensor": "TENSORWISE", "block32": "BLOCKWISE_32", "block64": "BLOCKWISE_64"}


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to some operations; a later rule goes over an earlier one.

    Attributes:
        layers: regular expression, looked for in the names of an operation's tensors; a layer's name, for example.
        operation: TFLite's name (`CONV_2D`, `FULLY_CONNECTED`), `*` for all that it knows.
        compute: `dynamic` quantizes activations as they come, `static` by representative samples, `weight-only`
            computes in float.
        bits: of weights.
        activation_bits: of activations, where they are static.
        granularity: which weights share a scale; blocks are for fully connected layers.
    """

    layers: str = ".*"
    operation: str = "*"
    compute: Literal["dynamic", "static", "weight-only"] = "dynamic"
    bits: Bits = 8
    activation_bits: Literal[8, 16] = 8
    granularity: Literal["channel", "tensor", "block32", "block64"] = "channel"


FAST = (  # int4 where its kernel is fast
    Rule(operation="CONV_2D"),
    Rule(operation="DEPTHWISE_CONV_2D"),
    Rule(operation="FULLY_CONNECTED", bits=4),
)


class Mixed(Stage, frozen=True, kw_only=True, tag="mixed"):
    """Each operation by the last rule that fits it; what no rule fits stays float.

    Attributes:
        rules: in order.
        samples: representative ones, where a rule is static.
    """

    takes: ClassVar[Form] = "artifact"
    gives: ClassVar[Form] = "artifact"

    rules: tuple[Rule, ...] = FAST
    samples: Annotated[int, msgspec.Meta(ge=1)] = 200

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage("quantizing layer by layer")
        return quantize(piece.artifact or b"", self.rules, bench, self.samples)


class WeightOnly(Stage, frozen=True, kw_only=True, tag="weight-only"):
    """Integer weights that are turned into float for computing: smaller, as right, not faster.

    Attributes:
        bits: of weights.
    """

    takes: ClassVar[Form] = "artifact"
    gives: ClassVar[Form] = "artifact"

    bits: Literal[4, 8] = 8

    def run(self, piece: Workpiece, bench: Workbench) -> tuple[Any, dict[str, Any]]:
        bench.on_stage(f"quantizing weights to {self.bits} bits")
        return quantize(piece.artifact or b"", (Rule(compute="weight-only", bits=self.bits),), bench, 1)


def quantize(content: bytes, rules: tuple[Rule, ...], bench: Workbench, samples: int) -> tuple[bytes, dict[str, Any]]:
    """A float artifact under rules, and what ai-edge-quantizer calls them.

    Raises:
        RecipeError: a rule that makes no sense, or representative samples that do not.
        ConversionError: ai-edge-quantizer refuses.
    """
    from ai_edge_quantizer import quantizer

    made = quantizer.Quantizer(content)
    for index, rule in enumerate(rules):
        _add(made, rule, f"rules[{index}]")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # calibration keeps every tensor, and says what that costs
            calibrated = _calibrate(made, content, bench, samples) if made.need_calibration else None
            found = made.quantize(calibrated, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        raise ConversionError(f"ai-edge-quantizer refuses: {str(error).strip()[:300]}") from error
    plain = json.loads(json.dumps(made.get_quantization_recipe()))  # its names are enumerations
    return bytes(found.quantized_model), {"recipe": plain}


def _add(made: Any, rule: Rule, where: str) -> None:
    from ai_edge_quantizer import qtyping

    names = {name.value for name in qtyping.TFLOperationName}
    if rule.operation not in names:
        raise RecipeError(f"{where}: unknown operation {rule.operation!r}; TFLite's names are meant, as CONV_2D")
    try:
        re.compile(rule.layers)
    except re.error as error:
        raise RecipeError(f"{where}: layers {rule.layers!r} is no regular expression: {error}") from error
    operation = qtyping.TFLOperationName(rule.operation)
    granularity = qtyping.QuantGranularity[_BLOCKS[rule.granularity]]
    try:
        if rule.compute == "static":
            made.add_static_config(rule.layers, operation, rule.activation_bits, rule.bits, granularity)
        elif rule.compute == "dynamic":
            made.add_dynamic_config(rule.layers, operation, rule.bits, granularity)
        else:
            made.add_weight_only_config(rule.layers, operation, rule.bits, granularity)
    except (ValueError, NotImplementedError) as error:
        raise RecipeError(f"{where}: {str(error).strip()[:300]}") from error


def _calibrate(made: Any, content: bytes, bench: Workbench, samples: int) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    x = checks.representative(bench.train.x, bench.train.x.shape[1:])[:samples]
    signatures = Interpreter(model_content=content, num_threads=1).get_signature_list()
    key, signature = next(iter(signatures.items()))
    [name] = signature["inputs"]
    with quiet_stderr():
        return made.calibrate({key: [{name: x[index : index + 1]} for index in range(len(x))]}, num_threads=1)
