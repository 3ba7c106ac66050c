"""Trains a cohort: picks a path for the model, cuts the cohort into chunks, and folds what they give as it comes."""

import logging
import os
import pathlib
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from contract.tensors import Arrays
from simulations.cohort.chunk import Path, Result, gather
from simulations.cohort.convolutions import Convolutions
from simulations.cohort.learner import Learner, Weights
from simulations.cohort.local import Client, Local, Trained, check
from simulations.cohort.processes import Processes
from simulations.cohort.reference import Reference
from simulations.cohort.stacks import Stacks
from simulations.cohort.vmapped import Vmapped
from simulations.errors import SimulationError
from simulations.population import Population

logger = logging.getLogger(__name__)

_LONG_S = 3.0  # of a round of clients one by one, from which on it is worth to start processes
_SCORED = 2048  # samples that are evaluated together
_CHUNK = {"dense kernels": 32, "convolutions": 10, "vmap": 16, "one by one": 4}  # clients at most
_CACHE_BYTES = 8e6  # of a processor's: where weights of all clients stand side by side, they should fit


@dataclass(frozen=True)
class Round:
    """What a cohort gave.

    Attributes:
        weights: average over the clients that count, weighed by their examples; float32.
        trained: of each client, by name.
        each: weights of each client by name, where they were asked for.
    """

    weights: Arrays
    trained: dict[str, Trained]
    each: dict[str, Arrays]


class Engine:
    """Local training of many clients over one population of samples."""

    def __init__(
        self,
        learner: Learner,
        x: np.ndarray,
        y: np.ndarray,
        *,
        path: str = "",
        chunk: int = 0,
        threads: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make an engine.

        Args:
            learner: what is trained.
            x: model input of the population, float32 (n, *input); may be memory-mapped.
            y: classes, (n,).
            path: `dense kernels`, `convolutions`, `vmap` or `one by one`; without it, the fastest that can train the
                model.
            chunk: most clients that train side by side; 0 takes what suits the path.
            threads: chunks that train at the same time; 0 takes one for each processor.
            dtype: in which it computes.

        Raises:
            SimulationError: a class that the model does not have, or a path that cannot train it.
        """
        if len(x) != len(y):
            raise SimulationError(f"{len(x)} samples and {len(y)} classes")
        self._x, self._y = _tensor(x), _tensor(np.asarray(y, np.int64))
        self._learner, self._dtype = learner, dtype
        self._ahead: Callable[[np.ndarray], None] = lambda _rows: None
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < learner.classes:
            raise SimulationError(
                f"classes {y.min()} to {y.max()} among the samples; the model knows {learner.classes}"
            )
        self._threads = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,))
        self._path = self._picked(path)
        self._chunk = chunk or self._fitting()
        self._processes: Processes | None = None
        # By what processes begin; None where threads do as well, or where there is nothing to begin with.
        self._source = learner.source if self._threads > 1 and self._path.name == Reference.name else None
        logger.info("cohorts train by %s, %d clients side by side, %d threads", *self.plan.values())

    @property
    def plan(self) -> dict[str, str | int]:
        """How it trains: the same plan, seed and machine give the same bits."""
        return {"path": self._path.name, "chunk": self._chunk, "threads": self._threads}

    def _fitting(self) -> int:
        """Clients of a chunk."""
        most = _CHUNK[self._path.name]
        if self._path.name not in {Stacks.name, Vmapped.name}:
            return most
        one = sum(each.size for each in self._learner.start.values()) * self._dtype.itemsize
        return max(4, min(most, int(_CACHE_BYTES / one)))

    def move(self, folder: pathlib.Path, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Lay the samples out on disk by client and train from there, so that memory need not hold them.

        Returns:
            Rows of each client, in place of `parts`.

        Raises:
            SimulationError: the folder is there already, or cannot be written.
        """
        moved = Population.create(folder, self._x.numpy(), self._y.numpy(), parts)
        self._x, self._y, self._ahead = _tensor(moved.x), _tensor(moved.y), moved.ahead
        return [moved.rows(client) for client in range(moved.clients)]

    def _picked(self, wanted: str) -> Path:
        learner = self._learner
        if wanted == Reference.name:
            return Reference(learner)
        if learner.stack and wanted in {"", Stacks.name, Convolutions.name}:
            by_hand = Convolutions(learner.images, learner.stack) if learner.images else Stacks(learner)
            if wanted in {"", by_hand.name}:
                return by_hand
        if wanted == Stacks.name:
            raise SimulationError("dense kernels train nothing but dense layers with bias, and ReLU between them")
        if wanted == Convolutions.name:
            raise SimulationError(
                "convolutions with bias, ReLU and max pooling, then dense layers: this model is no such chain"
            )
        if wanted not in {"", Vmapped.name}:
            raise SimulationError(f"no path {wanted!r}; there are {', '.join(_CHUNK)}")
        found, loop = Vmapped(learner), Reference(learner)
        if learner.trained < len(learner.names):
            if wanted:
                raise SimulationError(f"{learner.names[learner.trained]} is kept by batch, which {wanted} cannot do")
            logger.warning("clients train one by one, for %s is kept by batch", learner.names[learner.trained])
            return loop
        try:
            seconds = self._seconds(found)
        except Exception as error:  # whatever a user's model raises under vmap
            if wanted:
                raise SimulationError(f"vmap cannot follow this model: {error}") from error
            logger.warning("clients train one by one, for vmap cannot follow this model: %s", str(error).split("\n")[0])
            return loop
        return found if wanted or seconds < self._seconds(loop) else loop

    def _seconds(self, path: Path) -> float:
        """How long a path takes for a few steps of a few clients, on one thread."""

        def run() -> float:
            client = Client("trial", np.zeros(64, np.int64), 1, 0.0, None)
            chunk = gather([client] * 8, self._x[:1], self._y[:1], Local(batch=32), self._dtype)
            begun = time.perf_counter()
            path.train(self._weights(self._learner.start), chunk, keep=False)
            return time.perf_counter() - begun

        return min(self._pool.submit(run).result() for _ in range(3))

    def _weights(self, arrays: Arrays) -> Weights:
        return [_tensor(arrays[name]).to(self._dtype) for name in self._learner.names]

    def train(
        self,
        weights: Arrays,
        clients: Sequence[Client],
        local: Local,
        *,
        keep: bool = False,
        on_done: Callable[[int], None] = lambda _clients: None,
    ) -> Round:
        """Train a cohort from common weights.

        Args:
            weights: by name, those of the learner.
            clients: the cohort.
            local: settings of all.
            keep: also give each client's weights; otherwise memory is that of the chunks on their way.
            on_done: told how many clients are done, chunk by chunk.

        Raises:
            SimulationError: no client, one without samples, or none whose training stayed finite.
        """
        check(clients)
        start = self._weights(weights)
        by_steps = sorted(clients, key=lambda client: (-client.steps(local.batch), client.rows[0]))
        turns = -(-len(clients) // (self._chunk * self._threads))  # so that no thread waits for the last chunk
        size = -(-len(clients) // (turns * self._threads))
        chunks = [by_steps[at : at + size] for at in range(0, len(by_steps), size)]
        total = [torch.zeros(each.shape, dtype=torch.float64) for each in start]
        trained: dict[str, Trained] = {}
        each: dict[str, Arrays] = {}
        with _on_one_thread():
            for members, result in self._results(start, chunks, local, keep=keep):
                for whole, part in zip(total, result.change, strict=True):
                    whole.add_(part)
                on_done(len(trained) + len(members))
                trained |= {client.name: told for client, told in zip(members, result.trained, strict=True)}
                if result.weights is not None:
                    each |= self._named(members, result.weights)
        examples = sum(told.examples for told in trained.values() if told.finite)
        if not examples:
            raise SimulationError(
                "no client's training stayed finite; lower the learning rate, and look at the samples"
            )
        new = [base.double() + change / examples for base, change in zip(start, total, strict=True)]
        named = zip(self._learner.names, new, strict=True)
        return Round({name: value.numpy().astype(np.float32) for name, value in named}, trained, each)

    def _named(self, members: Sequence[Client], weights: Weights) -> dict[str, Arrays]:
        arrays = [each.contiguous().numpy().astype(np.float32) for each in weights]
        return {
            client.name: {name: array[index] for name, array in zip(self._learner.names, arrays, strict=True)}
            for index, client in enumerate(members)
        }

    def _results(
        self, start: Weights, chunks: Sequence[Sequence[Client]], local: Local, *, keep: bool
    ) -> Iterator[tuple[Sequence[Client], Result]]:
        """Each chunk and what it gave, in order, so that sums are the same whichever thread is quicker."""

        def work(members: Sequence[Client]) -> Result:
            return self._path.train(start, gather(members, self._x, self._y, local, self._dtype), keep=keep)

        def submit(members: Sequence[Client]) -> Callable[[], Result]:
            if processes is None:
                return self._pool.submit(work, members).result
            try:
                sent = processes.submit(start, members, local, keep=keep)
            except BrokenProcessPool:
                self._give_up()
                return self._pool.submit(work, members).result
            return lambda: here_if_broken(sent, members)

        def here_if_broken(sent: Callable[[], Result], members: Sequence[Client]) -> Result:
            try:
                return sent()
            except BrokenProcessPool:
                self._give_up()
                return self._pool.submit(work, members).result()

        processes, begun = self._begun(), time.perf_counter()
        waiting: deque[tuple[Sequence[Client], Callable[[], Result]]] = deque()
        for members in chunks:
            for client in members:
                self._ahead(client.rows)
            waiting.append((members, submit(members)))
            if len(waiting) > 2 * self._threads:
                first, result = waiting.popleft()
                yield first, result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result()
        if time.perf_counter() - begun > _LONG_S and self._processes is None and self._source is not None:
            self._start_processes(*self._source)

    def _start_processes(self, task: str, seed: int) -> None:
        x, y = self._x.numpy(), self._y.numpy()
        try:
            self._processes = Processes(task, seed, x, y, dtype=self._dtype, count=self._threads)
        except OSError as error:
            self._source = None
            logger.warning("clients go on on threads, for the population cannot be shared with processes: %s", error)
        else:
            logger.info("rounds are long: %d processes start, to train clients one by one", self._threads)

    def _begun(self) -> Processes | None:
        """The processes, where they can train."""
        try:
            return self._processes if self._processes is not None and self._processes.ready else None
        except BrokenProcessPool:
            self._give_up()
            return None

    def _give_up(self) -> None:
        if self._processes is not None:
            logger.warning("clients go on on threads, for a process that trained them ended")
        self._processes = self._source = None

    def evaluate(self, weights: Arrays, clients: Sequence[Client]) -> dict[str, Trained]:
        """Mean loss and share of right answers of common weights on each client's samples.

        Raises:
            SimulationError: no client, or one without samples.
        """
        check(clients)
        rows = np.concatenate([client.rows for client in clients])
        losses, hits = self.score(weights, self._x, self._y, rows)
        starts = np.cumsum([0, *(len(client.rows) for client in clients[:-1])])
        sums = zip(clients, np.add.reduceat(losses, starts), np.add.reduceat(hits, starts), strict=True)
        return {
            client.name: Trained(float(loss) / len(client.rows), float(right) / len(client.rows), len(client.rows))
            for client, loss, right in sums
        }

    def score(
        self, weights: Arrays, x: torch.Tensor | np.ndarray, y: torch.Tensor | np.ndarray, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cross-entropy of each of some samples, and whether it is right: float64, (len(rows),)."""
        given, samples, labels = self._weights(weights), _tensor(x), _tensor(y)

        def work(part: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.no_grad():
                logits = self._learner.logits(given, samples.index_select(0, part).to(self._dtype), False)
                known = labels.index_select(0, part)
                return functional.cross_entropy(logits, known, reduction="none"), logits.argmax(1) == known

        parts = torch.from_numpy(rows).split(_SCORED)
        found = list(self._pool.map(work, parts))
        losses, hits = (torch.cat([each[place] for each in found]).double().numpy() for place in (0, 1))
        return losses, hits


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Sums are small: threads that help with them would then wait busily, at the cost of those that train."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tensor(array: torch.Tensor | np.ndarray) -> torch.Tensor:
    """A tensor over an array's memory. It is only read: torch warns of arrays that cannot be written."""
    if isinstance(array, torch.Tensor):
        return array
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(array)
