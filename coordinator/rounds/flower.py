"""The one module that touches what Flower keeps private, and what turns its records into plain data and back.

Flower's releases move private names, so its version is pinned exactly and each private name used here has a test
of its own. A run's identity is global to the process in Flower: one process runs one run.
"""

import logging
import os
import random
from collections.abc import Mapping

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # read when flwr is imported
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy
from flwr.supercore.run import Run  # private: the type of Grid.run
from flwr.supercore.task_identity import TaskIdentity  # private: Message() reads it

from contract.tensors import Arrays

__all__ = ["FIRST_NODE", "ConfigRecord", "FedAvg", "FedProx", "Grid", "Message", "Run", "Strategy"]

FIRST_NODE = 2  # 1 is the server's own node
_CLIENT_ERROR = 4

logging.getLogger("flwr").setLevel(logging.WARNING)  # its INFO lines repeat ours


def identify(run: int = 1) -> Run:
    """Give this process the identity of a run; Flower's messages cannot be made without one."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, 1, 1
    return Run.create_empty(run)


def set_message_id(message: Message, message_id: str) -> None:
    """Name a message; Flower has no public setter, and its own grids write here too."""
    message.metadata.__dict__["_message_id"] = message_id


def seed_sampling(seed: int, server_round: int) -> None:
    """Make the strategy's choice of devices a function of (seed, round), so that a resumed round asks the same ones."""
    random.seed(f"{seed}/{server_round}")  # Flower samples from the global generator


def record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Arrays as a record, in order."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})


def arrays(record: ArrayRecord, like: Mapping[str, np.ndarray] | None = None) -> Arrays:
    """Arrays of a record, in its order; with `like`, in the order and dtypes of that (Flower averages in float)."""
    found = {str(name): array.numpy() for name, array in record.items()}
    if like is None:
        return found
    return {name: _restore(found[name], want) for name, want in like.items()}


def _restore(value: np.ndarray, want: np.ndarray) -> np.ndarray:
    if want.dtype.kind in "iub" and value.dtype.kind == "f":
        value = np.rint(value)
    return value.astype(want.dtype, copy=False).reshape(want.shape)


def train_reply(message: Message, weights: Arrays, metrics: Mapping[str, float], examples: int) -> Message:
    """What stock strategies expect of a client that trained."""
    content = {"arrays": record(weights), "metrics": MetricRecord({**metrics, "num-examples": examples})}
    return Message(RecordDict(content), reply_to=message)


def evaluate_reply(message: Message, metrics: Mapping[str, float], examples: int) -> Message:
    """What stock strategies expect of a client that evaluated."""
    return Message(RecordDict({"metrics": MetricRecord({**metrics, "num-examples": examples})}), reply_to=message)


def error_reply(message: Message, reason: str) -> Message:
    """A client that failed: strategies count it and go on."""
    return Message(Error(_CLIENT_ERROR, reason), reply_to=message)


def metrics(record: MetricRecord | None) -> dict[str, float]:
    """Scalars of a metric record; empty for None."""
    return {str(name): float(value) for name, value in (record or {}).items()}
