"""Integers into a float `.tflite`, operation by operation, by ai-edge-quantizer; TensorFlow is not needed.

Rules say what becomes of which operation. They are resolved here, to one entry of ai-edge-quantizer's recipe for an
operation: it looks at the name of an operation's output alone, and that of the last layer does not hold the layer's.
"""

import contextlib
import io
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

from cloud.learning.backend import quiet_stderr
from compression import checks
from compression.errors import ArtifactError, ConversionError, RecipeError

Bits = Literal[2, 4, 8]
Compute = Literal["dynamic", "static", "weight-only", "float"]
Granularity = Literal["channel", "tensor", "block32", "block64", "block128", "block256"]
EVERY = ".*"
ALL = "*"


class Rule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to some operations; a later rule goes over an earlier one.

    Attributes:
        layers: regular expression, looked for in the names of an operation's output and constants; a layer's name, for
            example.
        operation: TFLite's name (`CONV_2D`, `FULLY_CONNECTED`), `INPUT` or `OUTPUT`, `*` for all that can do it.
        compute: `dynamic` quantizes activations as they come, `static` by representative samples, `weight-only`
            computes in float; `float` leaves the operation alone.
        bits: of weights; 2 are for `dynamic`, and 4 are fast in fully connected layers alone.
        activation_bits: of activations, where they are static.
        granularity: which weights share a scale; blocks are for fully connected layers of 4 bits, dynamic.
    """

    layers: str = EVERY
    operation: str = ALL
    compute: Compute = "dynamic"
    bits: Bits = 8
    activation_bits: Literal[8, 16] = 8
    granularity: Granularity = "channel"


class Operation(NamedTuple):
    """An operation of the main graph: its name at TFLite, the scope that ai-edge-quantizer gives it, names in it."""

    kind: str
    scope: str
    names: str


class Quantized(NamedTuple):
    """An artifact, ai-edge-quantizer's recipe of it, and which operations were changed how."""

    content: bytes
    recipe: list[dict[str, Any]]
    changed: list[dict[str, Any]]


def quantize(artifact: bytes, rules: Sequence[Rule], x: np.ndarray) -> Quantized:
    """A float artifact under rules. A static rule for everything makes input and output integers, too.

    Args:
        artifact: float32 `.tflite` with one signature.
        rules: in order.
        x: representative samples, float32 (n, *input); looked at where a rule is static.

    Raises:
        ArtifactError: no `.tflite`, or one that is quantized already.
        RecipeError: a rule that makes no sense or changes nothing; samples that show nothing.
        ConversionError: ai-edge-quantizer refuses.
    """
    with quiet_stderr(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # calibration keeps every tensor, and says what that costs
        found = operations(artifact)
        check(rules, found)
        chosen = [(each, *_last(rules, each)) for each in found]
        recipe = [entry for _, entry, _ in chosen if entry is not None]
        changed = [
            {"operation": each.kind, "names": each.names, "compute": rule.compute, "bits": rule.bits}
            for each, entry, rule in chosen
            if entry is not None and rule is not None
        ]
        if not recipe:
            raise RecipeError(f"the rules change nothing of {', '.join(sorted({each.kind for each in found}))}")
        return Quantized(apply(artifact, recipe, x), recipe, changed)


def operations(artifact: bytes) -> list[Operation]:
    """Operations of the main graph that ai-edge-quantizer knows, in order, and input and output.

    Raises:
        ArtifactError: see `quantize`.
    """
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils as flatbuffers

    try:
        model = flatbuffers.read_model(artifact)
        graph = model.subgraphs[0]
        codes = [code.builtinCode for code in model.operatorCodes]
        names = [(tensor.name or b"").decode() for tensor in graph.tensors]
    except Exception as error:  # the reader of flatbuffers raises whatever comes of bytes that are none
        raise ArtifactError(f"not a .tflite that can be read: {type(error).__name__}: {error}") from error
    found = []
    for operator in graph.operators:
        inputs = [index for index in operator.inputs if index >= 0]
        for tensor in (graph.tensors[index] for index in inputs):
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                raise ArtifactError(f"tensor {tensor.name.decode()!r} is quantized; rules need a float artifact")
        kind = flatbuffers.TFL_OP_CODE_TO_NAME.get(codes[operator.opcodeIndex])
        constants = [names[index] for index in inputs if model.buffers[graph.tensors[index].buffer].data is not None]
        scope = flatbuffers.get_op_scope(operator, graph.tensors)
        if kind is not None:
            found.append(Operation(str(kind.value), f"^{re.escape(scope)}$", ";".join([scope[:-1], *constants])))
    return [*found, Operation("INPUT", EVERY, ""), Operation("OUTPUT", EVERY, "")]


def check(rules: Sequence[Rule], found: Sequence[Operation]) -> None:
    """Whether rules can be followed on these operations.

    Raises:
        RecipeError: no such operation or layer, no regular expression, or an operation that cannot do what its rule
            asks of it by name.
    """
    from ai_edge_quantizer import qtyping

    for index, rule in enumerate(rules):
        where = f"rules[{index}]"
        if rule.operation not in {name.value for name in qtyping.TFLOperationName}:
            raise RecipeError(f"{where}: unknown operation {rule.operation!r}; TFLite's names are meant, as CONV_2D")
        try:
            pattern = re.compile(rule.layers)
        except re.error as error:
            raise RecipeError(f"{where}: layers {rule.layers!r} is no regular expression: {error}") from error
        if not any(pattern.search(each.names) for each in found):
            named = ", ".join(sorted({each.names for each in found if each.names}))
            raise RecipeError(f"{where}: layers {rule.layers!r} is found in no operation; there are {named[:600]}")
        if rule.operation != ALL and rule.compute != "float":
            try:
                _entry(EVERY, rule.operation, rule)
            except (ValueError, NotImplementedError) as error:
                raise RecipeError(
                    f"{where}: {rule.operation} cannot be {rule.compute} with {rule.bits} bits by {rule.granularity}"
                ) from error


def _last(rules: Sequence[Rule], operation: Operation) -> tuple[dict[str, Any] | None, Rule | None]:
    """The last rule that fits an operation and that it can follow, and its entry; none for float."""
    for rule in reversed(rules):
        if rule.operation not in {ALL, operation.kind} or not re.search(rule.layers, operation.names):
            continue
        if rule.compute == "float":
            return None, rule
        with contextlib.suppress(ValueError, NotImplementedError):  # `*` is for those that can
            return _entry(operation.scope, operation.kind, rule), rule
    return None, None


def _entry(scope: str, kind: str, rule: Rule) -> dict[str, Any]:
    """A rule as ai-edge-quantizer writes it; ValueError where the operation cannot do that."""
    from ai_edge_quantizer import qtyping, recipe_manager

    operation = qtyping.TFLOperationName(kind)
    shared = {"channel": "CHANNELWISE", "tensor": "TENSORWISE"}.get(rule.granularity)
    granularity = qtyping.QuantGranularity(shared or rule.granularity.upper().replace("BLOCK", "BLOCKWISE_"))
    manager = recipe_manager.RecipeManager()
    if rule.compute == "static":
        manager.add_static_config(scope, operation, rule.activation_bits, rule.bits, granularity)
    elif rule.compute == "dynamic":
        manager.add_dynamic_config(scope, operation, rule.bits, granularity)
    else:
        manager.add_weight_only_config(scope, operation, rule.bits, granularity)
    return dict(json.loads(json.dumps(manager.get_quantization_recipe()[0])))  # its names are enumerations


def apply(artifact: bytes, recipe: list[dict[str, Any]], x: np.ndarray) -> bytes:
    """A float artifact under a recipe of ai-edge-quantizer; arguments and errors as for `quantize`."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer

    try:
        worker = quantizer.Quantizer(artifact, recipe)
        ranges = None
        if worker.need_calibration:
            runner = Interpreter(model_content=artifact, num_threads=1)
            shown = checks.representative(x, runner.get_input_details()[0]["shape"][1:].tolist())
            key, signature = next(iter(runner.get_signature_list().items()))
            [name] = signature["inputs"]
            ranges = worker.calibrate({key: [{name: shown[i : i + 1]} for i in range(len(shown))]}, num_threads=1)
        made = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise ConversionError(f"ai-edge-quantizer refuses: {reason[:300]}") from error
    return bytes(made.quantized_model or b"")
