"""The loop in processes of its own: threads that run one interpreter's code wait for each other, processes do not.

A process loads the task again and maps the population from a file, so that what is sent are clients, weights and
changes alone. It gives the bits that a thread gives.
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cloud.learning.task import load_task
from simulations.cohort.chunk import Result, gather
from simulations.cohort.learner import Weights, of_task
from simulations.cohort.local import Client, Local, Trained
from simulations.cohort.reference import Reference

Sent = tuple[list[np.ndarray], list[Trained], list[np.ndarray] | None]


@dataclass(frozen=True)
class Source:
    """What a process begins with.

    Attributes:
        task: by which `load_task` finds it.
        seed: of the model.
        folder: with `x.npy` and `y.npy`.
        dtype: in which it computes, as torch names it.
    """

    task: str
    seed: int
    folder: Path
    dtype: str


class Processes:
    """Trains chunks elsewhere. They take seconds to start; until `ready`, somebody else has to."""

    def __init__(self, task: str, seed: int, x: np.ndarray, y: np.ndarray, *, dtype: torch.dtype, count: int) -> None:
        """Start them.

        Raises:
            OSError: no room for a copy of the population among the temporary files.
        """
        folder = Path(tempfile.mkdtemp(prefix="fieldfare-population-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)  # also when this process ends
        for name, array in (("x", x), ("y", y)):
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        source = Source(task, seed, folder, str(dtype).removeprefix("torch."))
        context = multiprocessing.get_context("spawn")  # a fork would have this process's threads without their work
        self._pool = ProcessPoolExecutor(count, context, initializer=_begin, initargs=(source,))
        self._started = [self._pool.submit(_started) for _ in range(count)]

    @property
    def ready(self) -> bool:
        """Whether they have begun.

        Raises:
            BrokenProcessPool: one of them ended.
        """
        return all(each.done() and each.result() for each in self._started)

    def submit(self, start: Weights, members: Sequence[Client], local: Local, *, keep: bool) -> Callable[[], Result]:
        """Train a chunk; what is returned waits for the result, and raises BrokenProcessPool if a process ended."""
        future = self._pool.submit(_train, [each.numpy() for each in start], list(members), local, keep)
        return lambda: _received(future.result())

    def close(self) -> None:
        """End them."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _received(sent: Sent) -> Result:
    """As a path gives it."""
    change, trained, weights = sent
    kept = None if weights is None else [torch.from_numpy(each) for each in weights]
    return Result([torch.from_numpy(each) for each in change], trained, kept)


@dataclass(frozen=True)
class _Held:
    """What a process has: all that a call needs besides its arguments."""

    path: Reference
    x: torch.Tensor
    y: torch.Tensor
    dtype: torch.dtype


_held: list[_Held] = []


def _begin(source: Source) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who started it says when it ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    x, y = (torch.from_numpy(np.load(source.folder / f"{name}.npy", mmap_mode="c")) for name in ("x", "y"))
    path = Reference(of_task(load_task(source.task), seed=source.seed))
    _held.append(_Held(path, x, y, getattr(torch, source.dtype)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # also where it was killed
        os._exit(1)


def _started() -> bool:
    return bool(_held)


def _train(start: list[np.ndarray], members: list[Client], local: Local, keep: bool) -> Sent:
    (held,) = _held
    chunk = gather(members, held.x, held.y, local, held.dtype)
    done = held.path.train([torch.from_numpy(each.copy()) for each in start], chunk, keep=keep)
    weights = None if done.weights is None else [each.numpy() for each in done.weights]
    return [each.numpy() for each in done.change], done.trained, weights
