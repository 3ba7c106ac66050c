"""One test for each name that `coordinator.rounds.flower` uses and Flower calls private: a new release fails here."""

import random

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds import flower


def test_a_message_needs_the_task_identity_that_we_set():
    from flwr.supercore.task_identity import TaskIdentity

    flower.identify(7)
    message = Message(RecordDict(), 3, "train")
    assert (TaskIdentity.run_id, message.metadata.run_id, message.metadata.src_node_id) == (7, 7, 1)
    flower.identify()


def test_a_run_can_be_described_without_a_superlink():
    from flwr.supercore.run import Run

    assert isinstance(flower.identify(5), Run)
    assert flower.identify(5).run_id == 5
    flower.identify()


def test_a_message_takes_the_id_that_we_give_and_its_reply_names_it():
    flower.identify()
    message = Message(RecordDict(), 3, "train")
    flower.set_message_id(message, "ours")
    assert message.metadata.message_id == "ours"
    assert flower.error_reply(message, "why").metadata.reply_to_message_id == "ours"


def test_flower_samples_devices_from_the_global_generator_that_we_seed():
    class Nodes:
        def get_node_ids(self) -> list[int]:
            return list(range(2, 22))

    def asked(server_round: int) -> list[int]:
        flower.identify()
        flower.seed_sampling(1, server_round)
        strategy = FedAvg(fraction_train=0.3, min_train_nodes=6, min_available_nodes=20)
        arrays = flower.record({"w": np.zeros(1, np.float32)})
        messages = strategy.configure_train(server_round, arrays, ConfigRecord(), Nodes())
        return [message.metadata.dst_node_id for message in messages]

    first = asked(1)
    random.random()
    assert asked(1) == first
    assert asked(2) != first


def test_arrays_survive_the_way_into_a_record_and_back_in_order():
    arrays = {"b": np.ones((2, 3), np.float32), "a": np.asarray(4, np.int64)}
    back = flower.arrays(flower.record(arrays))
    assert list(back) == ["b", "a"]
    assert all((back[name] == arrays[name]).all() and back[name].dtype == arrays[name].dtype for name in arrays)


def test_averaged_integers_are_rounded_to_their_own_type():
    averaged = flower.record({"n": np.asarray([1.6, 2.4])})
    restored = flower.arrays(averaged, {"n": np.asarray([0, 0], np.int8)})
    assert restored["n"].dtype == np.int8
    assert restored["n"].tolist() == [2, 2]


def test_importing_flower_brings_no_framework():
    import subprocess
    import sys

    code = (
        "import sys; import coordinator.rounds.job; "
        "print([m for m in ('tensorflow','keras','torch','jax','ray','sklearn','pandas') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_flower_is_the_version_that_these_names_were_checked_with():
    from importlib.metadata import version

    assert version("flwr") == "1.41.0"


@pytest.fixture(autouse=True)
def _keep_the_global_generator():
    state = random.getstate()
    yield
    random.setstate(state)
