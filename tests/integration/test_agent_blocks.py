"""Blocks over a real Mosquitto: none is queued for a device that went away, and what came is not fetched again."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contract import blocks, limits, topics
from contract.messages import BlobRef
from edge_agent.artifacts import Artifacts
from edge_agent.errors import UnavailableError
from edge_agent.session import Message, Session
from edge_agent.transfer import Transfer
from tests.fakes.agent_coordinator import Coordinator
from tests.fakes.broker_process import BrokerProcess, Client, eventually

pytestmark = [pytest.mark.mosquitto, pytest.mark.slow]
BLOCK = limits.BLOCK_BYTES


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    running = BrokerProcess(tmp_path / "broker", "mosquitto")
    yield running
    running.stop()


@pytest.fixture
def coordinator(broker: BrokerProcess) -> Iterator[Coordinator]:
    running = Coordinator(broker)
    yield running
    running.stop()


class Device:
    """A session and a transfer in this process."""

    def __init__(self, broker: BrokerProcess, staging: Path) -> None:
        self.session = Session(
            "meter-1", host="127.0.0.1", port=broker.port, tls=lambda: broker.tls("meter-1"), boot="b"
        )
        self.stopping = threading.Event()
        self.transfer = Transfer(self.session, retry_s=2.0, stopping=self.stopping)
        self.pull = Artifacts(staging, self.transfer.fill).pull
        self.session.start()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert eventually(lambda: self.session.connected)

    def _listen(self) -> None:
        while not self.stopping.is_set():
            if eventually(lambda: not self.session.inbox.empty(), 0.2):
                event = self.session.inbox.get()
                if isinstance(event, Message):
                    parsed = topics.parse(event.topic)
                    assert isinstance(parsed, topics.BlobTopic)
                    self.transfer.accept_block(parsed.sha256, parsed.block, event.payload)

    def lose_power(self) -> None:
        connection = self.session._connection
        assert connection is not None
        self.session._closing.set()
        open_socket = connection._client.socket()
        assert isinstance(open_socket, socket.socket)
        open_socket.shutdown(socket.SHUT_RDWR)
        assert self.session._thread is not None
        self.session._thread.join(10)
        self.stopping.set()
        self._listener.join()

    def stop(self) -> None:
        self.stopping.set()
        self._listener.join()
        self.session.close()


def artifact(coordinator: Coordinator, count: int) -> BlobRef:
    content = np.random.default_rng(0).bytes(count * BLOCK)
    sha256 = hashlib.sha256(content).hexdigest()
    coordinator.blobs[sha256] = content
    return BlobRef(sha256, len(content), coordinator.keep_list(content) or "")


def test_for_a_device_that_goes_away_in_a_download_the_broker_keeps_no_block_and_the_rest_is_fetched_once(
    broker: BrokerProcess, coordinator: Coordinator, tmp_path: Path
) -> None:
    blob = artifact(coordinator, 40)
    coordinator.mute_from = 12  # it answers no request for later blocks: they stay subscribed
    device = Device(broker, tmp_path)

    def pull() -> None:
        with pytest.raises(UnavailableError):
            device.pull(blob)

    pulling = threading.Thread(target=pull, daemon=True)
    pulling.start()
    assert eventually(lambda: device.session._patterns.get(topics.blob(blob.sha256, 12)) == 0, 30)
    assert eventually(lambda: device.transfer._pulls[blob.sha256]._part.missing(1) == [12], 30)
    device.lose_power()
    pulling.join()
    for index in range(40):  # at QoS 1, as the worst coordinator would
        content = coordinator.blobs[blob.sha256][index * BLOCK : (index + 1) * BLOCK]
        assert coordinator.client.publish(topics.blob(blob.sha256, index), content)
    assert coordinator.client.publish(topics.down("meter-1", "ack"), b"sentinel")
    witness = Client(broker, "meter-1", clean=False)
    assert witness.present
    assert eventually(lambda: witness.messages)
    assert [message.topic for message in witness.messages] == [topics.down("meter-1", "ack")]
    witness.stop()

    before = [index for sha256, index in coordinator.served if sha256 == blob.sha256]
    coordinator.mute_from = None
    again = Device(broker, tmp_path)
    try:
        assert again.pull(blob).read_bytes() == coordinator.blobs[blob.sha256]
    finally:
        again.stop()
    after = [index for sha256, index in coordinator.served if sha256 == blob.sha256][len(before) :]
    assert sorted(after) == sorted(set(range(40)) - set(before))


def test_blocks_that_the_network_lost_are_repaired(
    broker: BrokerProcess, coordinator: Coordinator, tmp_path: Path
) -> None:
    blob = artifact(coordinator, 12)
    coordinator.lose = {(blob.sha256, index) for index in (0, 3, 11)} | {(blob.blocks, 0)}
    device = Device(broker, tmp_path)
    try:
        assert device.pull(blob).read_bytes() == coordinator.blobs[blob.sha256]
    finally:
        device.stop()
    assert coordinator.lose == set()
    assert eventually(lambda: device.session._patterns == {topics.all_down("meter-1"): 1})
    assert blocks.count(blob.size) == 12
