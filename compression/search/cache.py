"""Outputs of stages, kept by what they were made from, so that trials share them and a resumed search repeats nothing.

One safetensors file each: weights or the artifact as arrays, architecture and records as JSON. It is written under
another name and renamed, so that a file that is there is whole.
"""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from compression import tuning
from compression.stage import Record, Stage, Workbench, Workpiece

logger = logging.getLogger(__name__)
LIMIT_BYTES = 512 * 1024**2
_ARTIFACT = "artifact"


def origin(bench: Workbench) -> str:
    """SHA-256 of what every stage starts from: weights, samples and seed."""
    digest = hashlib.sha256(f"{bench.task.name} {bench.seed}".encode())
    parts = [*bench.weights.values(), bench.train.x, bench.train.y, bench.validation.x, bench.validation.y]
    for array in [*parts, *([] if bench.unlabelled is None else [bench.unlabelled])]:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def key(begun: str, stages: Sequence[Stage]) -> str:
    """SHA-256 of an origin and the stages so far, every parameter included."""
    return hashlib.sha256(msgspec.json.encode([begun, [msgspec.to_builtins(stage) for stage in stages]])).hexdigest()


class Cache:
    """A folder of pieces; the longest unused go first where it outgrows its limit.

    Args:
        folder: is made where it is missing.
        limit_bytes: of all files; a piece larger than that is not kept.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._limit = folder, limit_bytes
        for left in folder.glob("*.part"):  # of a process that was killed while it wrote
            left.unlink()

    def get(self, name: str) -> Workpiece | None:
        """A piece by its key; None where it is not here, or its file is damaged."""
        path = self._path(name)
        if not path.exists():
            return None
        try:
            piece = _decode(path)
        except (SafetensorError, msgspec.DecodeError, KeyError, TypeError, ValueError, OSError) as error:
            logger.warning("%s: damaged, made again: %s", path.name, error)
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return piece

    def put(self, name: str, piece: Workpiece) -> bool:
        """Keep a piece; whether that was possible: layers that JSON cannot describe are made again instead."""
        try:
            content = _encode(piece)
        except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
            logger.info("not kept: %s", error)
            return False
        if len(content) > self._limit:
            return False
        part = self._folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(self._path(name))
        try:
            _decode(self._path(name))
        except (SafetensorError, msgspec.DecodeError, KeyError, TypeError, ValueError) as error:
            logger.info("not kept: %s", error)
            self._path(name).unlink()
            return False
        self._shrink()
        return True

    def _shrink(self) -> None:
        files = sorted(((path.stat(), path) for path in self._folder.glob("*.piece")), key=lambda f: f[0].st_mtime_ns)
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in files:
            if total <= self._limit:
                return
            path.unlink()
            total -= stat.st_size

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.piece"


def _encode(piece: Workpiece) -> bytes:
    records = msgspec.json.encode(piece.records).decode()
    if piece.artifact is not None:
        return save({_ARTIFACT: np.frombuffer(piece.artifact, np.uint8)}, {"records": records})
    import tf_keras

    if not isinstance(piece.model, tf_keras.Model):
        raise TypeError(f"{type(piece.model).__module__} is not tf_keras")
    arrays = {f"{index:05}": np.ascontiguousarray(array) for index, array in enumerate(piece.model.get_weights())}
    return save(arrays, {"records": records, "model": piece.model.to_json()})


def _decode(path: Path) -> Workpiece:
    with safe_open(path, "np") as file:
        meta: dict[str, str] = file.metadata()
        arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    records = tuple(msgspec.json.decode(meta["records"], type=list[Record]))
    if "model" not in meta:
        return Workpiece(None, arrays[_ARTIFACT].tobytes(), records)
    return Workpiece(_model(meta["model"], list(arrays.values())), records=records)


def _model(architecture: str, arrays: list[np.ndarray]) -> Any:
    with tuning.quiet():
        import tensorflow_model_optimization as tfmot
        import tf_keras

        with tfmot.quantization.keras.quantize_scope():
            model = tf_keras.models.model_from_json(architecture)
        model.set_weights(arrays)
    return model
