"""The library that runs models, and how: ai-edge-litert, or tflite-runtime on devices that are too old for it."""

import ctypes
import importlib
from types import ModuleType
from typing import Any

import msgspec

from edge_agent.config import Config
from edge_agent.errors import RuntimeModelError
from edge_agent.runtime_operations import check_legacy

_LIBRARY = "ai-edge-litert"
_LIBRARIES = {_LIBRARY: "ai_edge_litert", "tflite-runtime": "tflite_runtime"}  # the first that is installed
_DELEGATE_SYMBOLS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")


class RuntimeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model runs.

    Attributes:
        threads: of the interpreter.
        xnnpack: use XNNPACK's kernels.
        delegate: shared library of a delegate; empty is none.
        delegate_options: its options.
    """

    threads: int = 1
    xnnpack: bool = True
    delegate: str = ""
    delegate_options: dict[str, str] = {}


def inference_options(config: Config) -> RuntimeOptions:
    """What `agent.toml` says of inference."""
    return RuntimeOptions(
        threads=config.threads,
        xnnpack=config.runtime.xnnpack,
        delegate=config.runtime.delegate,
        delegate_options=config.runtime.delegate_options,
    )


def training_options(config: Config) -> RuntimeOptions:
    """What `agent.toml` says of training, which runs on the processor whatever the delegate."""
    return RuntimeOptions(threads=config.threads, xnnpack=config.runtime.xnnpack)


def runtime_version() -> str:
    """Name and version of the library, for example `ai-edge-litert 2.3.0`.

    Raises:
        RuntimeModelError: none is installed.
    """
    name, package = _library()
    return f"{name} {package.__version__}"


def interpreter(model: bytes, options: RuntimeOptions) -> Any:
    """Load a model; its tensors are not allocated yet.

    Raises:
        RuntimeModelError: not a `.tflite`, an operation that the library lacks, or a delegate that cannot be loaded.
    """
    name, package = _library()
    if name != _LIBRARY:
        check_legacy(model)
    library = importlib.import_module(f"{package.__name__}.interpreter")
    resolvers = library.OpResolverType
    delegates = [_delegate(library, options)] if options.delegate else None
    try:
        return library.Interpreter(
            model_content=model,
            num_threads=options.threads,
            experimental_op_resolver_type=(
                resolvers.AUTO if options.xnnpack else resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES
            ),
            experimental_delegates=delegates,
        )
    except (ValueError, RuntimeError) as error:
        raise RuntimeModelError(f"{name} cannot load the model: {error}") from error


def training_interpreter(model: bytes, options: RuntimeOptions) -> Any:
    """Load a training model.

    Raises:
        RuntimeModelError: as `interpreter`, or the library cannot train: tflite-runtime aborts the process.
    """
    name, _ = _library()
    if name != _LIBRARY:
        raise RuntimeModelError(f"{name} is for inference only; training needs ai-edge-litert")
    return interpreter(model, options)


def _library() -> tuple[str, ModuleType]:
    for name, package in _LIBRARIES.items():
        try:
            return name, importlib.import_module(package)
        except ModuleNotFoundError:
            continue
    raise RuntimeModelError("no runtime is installed; run: pip install ai-edge-litert, or fieldfare[agent-legacy]")


def _delegate(library: ModuleType, options: RuntimeOptions) -> Any:
    """Load a delegate; what is no delegate is found first, for the library's own loader trips over it."""
    path = options.delegate
    try:
        shared = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeModelError(f"runtime.delegate: {path} cannot be loaded: {error}") from error
    missing = [symbol for symbol in _DELEGATE_SYMBOLS if not hasattr(shared, symbol)]
    if missing:
        raise RuntimeModelError(f"runtime.delegate: {path} is not a delegate, it lacks {' and '.join(missing)}")
    try:
        return library.load_delegate(path, options.delegate_options)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[2] or error  # the first line names the file again
        raise RuntimeModelError(f"runtime.delegate: {path} refuses: {reason}") from error
