"""TensorFlow in a job's process: chosen as Keras' backend, without an accelerator, and without its chatter.

Call `use_tensorflow` before the first import of keras or tensorflow; nothing here happens at import.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator

_SETTINGS = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "CUDA_VISIBLE_DEVICES": "-1",  # models of this size train faster without the copies
    "TF_USE_LEGACY_KERAS": "0",  # tf_keras is imported by its own name where tfmot needs it
}


def use_tensorflow() -> None:
    """Set the environment that TensorFlow reads when it is imported, and import it quietly."""
    os.environ.update(_SETTINGS)
    with quiet_stderr():
        import keras  # noqa: F401 the import is the point
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for accelerators now, and complains now
    tf.get_logger().setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)


def use_torch() -> None:
    """Choose torch as Keras' backend, for what trains and does not convert; call it before keras comes in.

    Raises:
        RuntimeError: Keras was imported with another backend.
    """
    os.environ.update(_SETTINGS | {"KERAS_BACKEND": "torch"})
    with quiet_stderr():
        import keras

        keras.utils.set_random_seed(0)  # imports TensorFlow, which complains, where there is one
    if keras.backend.backend() != "torch":
        raise RuntimeError(f"Keras runs on {keras.backend.backend()} in this process; torch comes too late")


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what native code writes to file descriptor 2; if the block raises, it is written after all."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            if failed:
                held.seek(0)
                os.write(2, held.read())
