"""A contender of the simulation benchmark: Flower's own engine over Ray, two actors of one thread each.

Runs in an environment of its own, as `python -m benchmarks.simulation_flower WORKLOAD`. An actor keeps the samples and
one model, so that what is measured is the engine and not the making of models.
"""

import os
import sys
import time
from functools import cache
from typing import Any

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.simulation_workloads import WORKLOADS, Population, await_turn, tell

_ROUNDS = 10_000  # the benchmark ends it
_NAME = "FIELDFARE_WORKLOAD"  # actors inherit it

client, server = ClientApp(), ServerApp()


@cache
def _population() -> Population:
    torch.set_num_threads(1)
    return Population(WORKLOADS[os.environ[_NAME]])


@client.train()
def train(message: Message, context: Context) -> Message:
    """One client's round."""
    population = _population()
    population.model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    examples = population.descend(population.model, int(context.node_config["partition-id"]))
    arrays = ArrayRecord(population.model.state_dict())
    content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": examples})})
    return Message(content=content, reply_to=message)


class _Timed(FedAvg):
    """From the making of a round's messages to the new weights."""

    began = 0.0

    def configure_train(self, *given: Any) -> Any:
        """Wait for the turn, and look at the clock."""
        await_turn()
        self.began = time.perf_counter()
        return super().configure_train(*given)

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        """Say how long it took; a client that failed would make it look quick."""
        replies = list(replies)
        found = super().aggregate_train(server_round, replies)
        if any(reply.has_error() for reply in replies):
            os._exit(1)
        tell(time.perf_counter() - self.began)
        return found


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train without end."""
    workload = WORKLOADS[os.environ[_NAME]]
    strategy = _Timed(
        fraction_train=workload.cohort / workload.population + 1e-9,
        fraction_evaluate=0.0,
        min_train_nodes=workload.cohort,
        min_available_nodes=workload.population,
    )
    strategy.start(grid=grid, initial_arrays=ArrayRecord(_population().model.state_dict()), num_rounds=_ROUNDS)


def contend(workload: str) -> None:
    """Train rounds of a workload, one for each line on standard input."""
    os.environ[_NAME] = workload
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=WORKLOADS[workload].population,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "log_to_driver": False},
        },
    )


if __name__ == "__main__":
    from benchmarks import simulation_flower  # under its own name, by which the actors find it

    simulation_flower.contend(sys.argv[1])
