"""Operations of a `.tflite` and their versions, read without a runtime; and what tflite-runtime 2.14 knows of them.

tflite-runtime may end the process on a model that it does not understand, so the agent looks first. A `.tflite` is a
FlatBuffer: a table begins with the distance to its vtable, which gives each field's place
(https://flatbuffers.dev/internals). Of it, `Model.operator_codes` alone is read; every place is checked.
"""

import struct
from functools import cache
from typing import NamedTuple

from edge_agent.errors import RuntimeModelError

_CODES = 1024  # operator codes in one model
_CUSTOM = 32
_NAME_CHARACTERS = 64
LEGACY = "tflite-runtime 2.14"

# By number in BuiltinOperator: name, and the newest version that tflite-runtime 2.14.0 loads; 0 where it knows none.
_KNOWN = """
ADD 5, AVERAGE_POOL_2D 3, CONCATENATION 4, CONV_2D 7, DEPTHWISE_CONV_2D 7, DEPTH_TO_SPACE 2, DEQUANTIZE 5,
EMBEDDING_LOOKUP 3, FLOOR 1, FULLY_CONNECTED 10, HASHTABLE_LOOKUP 1, L2_NORMALIZATION 2, L2_POOL_2D 1,
LOCAL_RESPONSE_NORMALIZATION 1, LOGISTIC 3, LSH_PROJECTION 1, LSTM 4, MAX_POOL_2D 3, MUL 7, RELU 3, RELU_N1_TO_1 1,
RELU6 3, RESHAPE 1, RESIZE_BILINEAR 4, RNN 3, SOFTMAX 3, SPACE_TO_DEPTH 2, SVDF 4, TANH 3, CONCAT_EMBEDDINGS 0,
SKIP_GRAM 1, CALL 0, CUSTOM 0, EMBEDDING_LOOKUP_SPARSE 1, PAD 4, UNIDIRECTIONAL_SEQUENCE_RNN 3, GATHER 6,
BATCH_TO_SPACE_ND 4, SPACE_TO_BATCH_ND 4, TRANSPOSE 6, MEAN 3, SUB 5, DIV 2, SQUEEZE 2, UNIDIRECTIONAL_SEQUENCE_LSTM
4, STRIDED_SLICE 8, BIDIRECTIONAL_SEQUENCE_RNN 3, EXP 2, TOPK_V2 3, SPLIT 4, LOG_SOFTMAX 2, DELEGATE 0,
BIDIRECTIONAL_SEQUENCE_LSTM 3, CAST 5, PRELU 1, MAXIMUM 4, ARG_MAX 3, MINIMUM 4, LESS 3, NEG 1, PADV2 4, GREATER 2,
GREATER_EQUAL 3, LESS_EQUAL 2, SELECT 4, SLICE 6, SIN 1, TRANSPOSE_CONV 4, SPARSE_TO_DENSE 3, TILE 3, EXPAND_DIMS 1,
EQUAL 4, NOT_EQUAL 3, LOG 1, SUM 2, SQRT 1, RSQRT 2, SHAPE 1, POW 1, ARG_MIN 3, FAKE_QUANT 2, REDUCE_PROD 2,
REDUCE_MAX 3, PACK 4, LOGICAL_OR 1, ONE_HOT 1, LOGICAL_AND 1, LOGICAL_NOT 1, UNPACK 4, REDUCE_MIN 3, FLOOR_DIV 3,
REDUCE_ANY 1, SQUARE 1, ZEROS_LIKE 1, FILL 4, FLOOR_MOD 2, RANGE 2, RESIZE_NEAREST_NEIGHBOR 4, LEAKY_RELU 2,
SQUARED_DIFFERENCE 2, MIRROR_PAD 3, ABS 5, SPLIT_V 2, UNIQUE 1, CEIL 1, REVERSE_V2 3, ADD_N 1, GATHER_ND 4, COS 1,
WHERE 2, RANK 1, ELU 1, REVERSE_SEQUENCE 1, MATRIX_DIAG 1, QUANTIZE 3, MATRIX_SET_DIAG 1, ROUND 1, HARD_SWISH 1, IF 1,
WHILE 1, NON_MAX_SUPPRESSION_V4 1, NON_MAX_SUPPRESSION_V5 1, SCATTER_ND 1, SELECT_V2 2, DENSIFY 1, SEGMENT_SUM 1,
BATCH_MATMUL 4, PLACEHOLDER_FOR_GREATER_OP_CODES 0, CUMSUM 1, CALL_ONCE 1, BROADCAST_TO 3, RFFT2D 1, CONV_3D 1, IMAG
1, REAL 1, COMPLEX_ABS 1, HASHTABLE 1, HASHTABLE_FIND 1, HASHTABLE_IMPORT 1, HASHTABLE_SIZE 1, REDUCE_ALL 1,
CONV_3D_TRANSPOSE 1, VAR_HANDLE 1, READ_VARIABLE 1, ASSIGN_VARIABLE 1, BROADCAST_ARGS 1, RANDOM_STANDARD_NORMAL 1,
BUCKETIZE 1, RANDOM_UNIFORM 1, MULTINOMIAL 1, GELU 2, DYNAMIC_UPDATE_SLICE 1, RELU_0_TO_1 1, UNSORTED_SEGMENT_PROD 1,
UNSORTED_SEGMENT_MAX 1, UNSORTED_SEGMENT_SUM 1, ATAN2 1, UNSORTED_SEGMENT_MIN 1, SIGN 2, BITCAST 1, BITWISE_XOR 1,
RIGHT_SHIFT 1, STABLEHLO_LOGISTIC 0, STABLEHLO_ADD 0, STABLEHLO_DIVIDE 0, STABLEHLO_MULTIPLY 0, STABLEHLO_MAXIMUM 0,
STABLEHLO_RESHAPE 0, STABLEHLO_CLAMP 0, STABLEHLO_CONCATENATE 0, STABLEHLO_BROADCAST_IN_DIM 0, STABLEHLO_CONVOLUTION
0, STABLEHLO_SLICE 0, STABLEHLO_CUSTOM_CALL 0, STABLEHLO_REDUCE 0, STABLEHLO_ABS 0, STABLEHLO_AND 0, STABLEHLO_COSINE
0, STABLEHLO_EXPONENTIAL 0, STABLEHLO_FLOOR 0, STABLEHLO_LOG 0, STABLEHLO_MINIMUM 0, STABLEHLO_NEGATE 0, STABLEHLO_OR
0, STABLEHLO_POWER 0, STABLEHLO_REMAINDER 0, STABLEHLO_RSQRT 0, STABLEHLO_SELECT 0, STABLEHLO_SUBTRACT 0,
STABLEHLO_TANH 0, STABLEHLO_SCATTER 0, STABLEHLO_COMPARE 0, STABLEHLO_CONVERT 0, STABLEHLO_DYNAMIC_SLICE 0,
STABLEHLO_DYNAMIC_UPDATE_SLICE 0, STABLEHLO_PAD 0, STABLEHLO_IOTA 0, STABLEHLO_DOT_GENERAL 0, STABLEHLO_REDUCE_WINDOW
0, STABLEHLO_SORT 0, STABLEHLO_WHILE 0, STABLEHLO_GATHER 0, STABLEHLO_TRANSPOSE 0, DILATE 0,
STABLEHLO_RNG_BIT_GENERATOR 0, REDUCE_WINDOW 0, STABLEHLO_COMPOSITE 0, STABLEHLO_SHIFT_LEFT 0, STABLEHLO_CBRT 0,
STABLEHLO_CASE 0
"""


class Operation(NamedTuple):
    """An operation that a model asks for."""

    name: str
    version: int
    known: int


def operations(model: bytes) -> list[Operation]:
    """What a model asks for, and up to which version tflite-runtime 2.14 knows it.

    Raises:
        RuntimeModelError: not a `.tflite`.
    """
    try:
        return _operations(model)
    except _OutsideError as error:
        raise RuntimeModelError("the model is not a .tflite, or is cut off") from error


def check_legacy(model: bytes) -> None:
    """Refuse a model that tflite-runtime 2.14 would refuse or end the process on.

    Raises:
        RuntimeModelError: naming every operation that is too new.
    """
    lacking = [
        f"{name} version {version} (it knows up to {known})" if known else f"{name} (it knows none)"
        for name, version, known in operations(model)
        if version > known
    ]
    if lacking:
        raise RuntimeModelError(
            f"the model needs a newer runtime than {LEGACY}: {', '.join(lacking)}; "
            "int8 and float variants may run, dynamic-range ones do not; or install ai-edge-litert"
        )


class _OutsideError(Exception):
    """A place outside the model."""


def _operations(model: bytes) -> list[Operation]:
    if model[4:8] != b"TFL3":
        raise _OutsideError
    place = _field(model, _follow(model, 0), 1)
    if place is None:
        return []
    start = _follow(model, place)
    count = _read(model, "<I", start)
    if count > _CODES:
        raise _OutsideError
    return [_operation(model, _follow(model, start + 4 + 4 * index)) for index in range(count)]


def _operation(model: bytes, table: int) -> Operation:
    old, version, new = (
        _read(model, form, place) if (place := _field(model, table, index)) is not None else default
        for index, form, default in ((0, "<b", 0), (2, "<i", 1), (3, "<i", 0))
    )
    code = max(old, new)
    if code == _CUSTOM:
        return Operation(f"custom operation {_custom_name(model, table)!r}", version, 0)
    known = _table()
    if 0 <= code < len(known):
        return Operation(known[code][0], version, known[code][1])
    return Operation(f"operation number {code}", version, 0)


def _custom_name(model: bytes, table: int) -> str:
    place = _field(model, table, 1)
    if place is None:
        return ""
    start = _follow(model, place)
    length = min(_read(model, "<I", start), _NAME_CHARACTERS)
    return model[start + 4 : start + 4 + length].decode(errors="replace")


@cache
def _table() -> list[tuple[str, int]]:
    pairs = (entry.split() for entry in _KNOWN.split(","))
    return [(name, int(known)) for name, known in pairs]


def _field(model: bytes, table: int, index: int) -> int | None:
    """Place of a table's field; None where it has its default."""
    vtable = table - _read(model, "<i", table)
    slot = 4 + 2 * index
    offset = _read(model, "<H", vtable + slot) if slot + 2 <= _read(model, "<H", vtable) else 0
    return table + offset if offset else None


def _follow(model: bytes, place: int) -> int:
    """Where the offset at a place leads."""
    return place + _read(model, "<I", place)


def _read(model: bytes, form: str, place: int) -> int:
    if not 0 <= place <= len(model) - struct.calcsize(form):
        raise _OutsideError
    (number,) = struct.unpack_from(form, model, place)
    return int(number)
