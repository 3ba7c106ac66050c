"""Committed rounds of one run, over the coordinator's own database and blobs."""

from contract import tensors
from contract.tensors import Arrays
from coordinator.rounds import runs
from coordinator.rounds.errors import RunClosedError
from coordinator.rounds.runs import RoundResult
from coordinator.storage import Storage


class SqlJournal:
    """`loop.Journal` for one run."""

    def __init__(self, storage: Storage, run: str) -> None:
        self._storage = storage
        self._run = run

    def committed(self) -> list[RoundResult]:
        """Rounds that are done, in order."""
        with self._storage.engine.begin() as connection:
            return runs.committed(connection, self._run)

    def commit(self, result: RoundResult) -> None:
        """Make a round's result durable.

        Raises:
            RunClosedError: the run was cancelled meanwhile.
        """
        with self._storage.engine.begin() as connection:
            run = runs.get(connection, self._run)
            if run.state not in runs.OPEN:
                raise RunClosedError(f"run {self._run} is {run.state}")
            runs.commit(connection, self._run, result)

    def put(self, weights: Arrays) -> str:
        """Store weights and return their digest."""
        return self._storage.blobs.put(tensors.dump(weights)).sha256

    def get(self, sha256: str) -> Arrays:
        """Weights by digest; NotFoundError where they are gone."""
        return tensors.load(self._storage.blobs.get(sha256))
