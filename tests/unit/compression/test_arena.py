"""The planned arena is what a process gains in the runtime, by the operating system's account."""

import subprocess
import sys
from pathlib import Path

import pytest

from compression import arena

_MIB = 1024 * 1024
_GAIN = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

interpreter = Interpreter(sys.argv[1], num_threads=1,
    experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
before = resident()
interpreter.allocate_tensors()
detail = interpreter.get_input_details()[0]
interpreter.tensor(detail["index"])()[:] = 1
interpreter.invoke()
print(resident() - before)
"""


@pytest.mark.parametrize(("skip", "tensors"), [(False, 3), (True, 4)])
def test_the_planned_arena_is_what_a_process_gains(tmp_path: Path, *, skip: bool, tensors: int) -> None:
    content = _pools(skip=skip)
    path = tmp_path / "pools.tflite"
    path.write_bytes(content)
    planned = arena.planned_bytes(content)
    assert planned == tensors * 8 * _MIB
    done = subprocess.run([sys.executable, "-c", _GAIN, str(path)], check=True, capture_output=True, text=True)
    assert int(done.stdout) == pytest.approx(planned, abs=_MIB)


def _pools(*, skip: bool) -> bytes:
    """Pooling in a chain: each operation has one tensor of 8 MiB before and one after it, beside the input;
    `skip` keeps the first too.
    """
    from cloud.learning.backend import use_tensorflow

    use_tensorflow()
    import keras

    from compression import convert

    given = keras.Input((512, 512, 8))
    pools = [keras.layers.MaxPooling2D(3, strides=1, padding="same") for _ in range(4)]
    out = first = pools[0](given)
    for pool in pools[1:]:
        out = pool(out)
    if skip:
        out = keras.layers.Maximum()([out, first])
    return convert.to_float(keras.Model(given, out))
