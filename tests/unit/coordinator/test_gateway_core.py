import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Connection, select

from contract import blocks, codec, limits, topics
from contract.errors import ProfileError
from contract.messages import (
    Ack,
    BlobRef,
    BlockRequest,
    Desired,
    Gone,
    Hello,
    Instruction,
    MetadataReply,
    MetadataRequest,
    RenewalReply,
    RenewalRequest,
    Report,
    RoundReply,
    SignedReceipt,
    Wanted,
)
from coordinator import pki
from coordinator.deltas.service import Deltas
from coordinator.errors import ConflictError
from coordinator.fleet import certificates
from coordinator.fleet.tables import received
from coordinator.gateway.blocks import COALESCE_S, PER_TICK, BlockQueue
from coordinator.gateway.core import Core, Outgoing
from tests.fakes.fleet_site import Instructions, NoCommands, Site

NOW = 1_700_000_000.0


class Stage(Site):
    """A site with a gateway core and a handler that notes what it is given, or fails as it is told."""

    def __init__(self, state: Path, database: str) -> None:
        super().__init__(state, database=database)
        self.instructions = Instructions()
        self.deltas = Deltas(self.storage, self.signing)
        self.seen: list[tuple[str, Any]] = []
        self.failure: Exception | None = None
        handlers = {RoundReply: self.handle, SignedReceipt: self.rollouts.on_receipt}
        self.core = Core(
            self.storage,
            self.fleet,
            self.signing,
            handlers,
            self.instructions,
            commands=NoCommands(),
            deltas=self.deltas,
        )
        self.enrol("meter-1")
        self.enrol("meter-2")

    def handle(self, connection: Connection, device: str, body: Any, now: float) -> None:
        self.fleet.on_gone(connection, device, Gone(boot="b1", connection=1), now)  # an effect that can be seen
        if self.failure is not None:
            raise self.failure
        self.seen.append((device, body))

    def send(self, channel: str, message: object, device: str = "meter-1") -> list[Outgoing]:
        return self.core.receive(topics.up(device, channel), codec.encode(message), NOW)

    def site_hellos(self, count: int) -> list[Hello]:
        return [self.hello("meter-1") for _ in range(count)]

    def reply(self, seq: int, outbox: str = "o1") -> list[Outgoing]:
        body = RoundReply(instruction=str(seq), error="", examples=1, metrics={}, weights=None, counts=None)
        return self.send("report", Report(outbox=outbox, seq=seq, body=body))

    def blocks(self, sha256: str, *indexes: int, device: str = "meter-1") -> None:
        assert self.send("pull", BlockRequest(sha256=sha256, blocks=list(indexes)), device) == []

    def tick(self, now: float = NOW + 1) -> list[Outgoing]:
        messages, published = self.core.tick(now)
        published()
        return messages


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Iterator[Stage]:
    made = Stage(tmp_path, database)
    yield made
    made.close()


def instruction(id: str = "i1") -> Instruction:  # noqa: A002 its name
    return Instruction(
        id=id,
        run="r",
        round=1,
        kind="train",
        bundle_sha256="0" * 64,
        weights=BlobRef("1" * 64, 3),
        expires_at=NOW + 60,
    )


def acks(messages: list[Outgoing]) -> list[Ack]:
    return [codec.decode(message.payload, Ack) for message in messages]


def test_a_report_has_its_effect_once_and_is_acknowledged_each_time(stage: Stage) -> None:
    for _ in range(3):
        assert acks(stage.reply(1)) == [Ack(outbox="o1", seqs=[1])]
    assert len(stage.seen) == 1
    stage.reply(2)
    stage.reply(1, outbox="o2")
    assert len(stage.seen) == 3


@pytest.mark.parametrize("failure", [ProfileError("bins differ"), ConflictError("run is over")])
def test_a_report_that_can_never_count_is_rolled_back_noted_and_acknowledged(stage: Stage, failure: Exception) -> None:
    stage.send("hello", stage.hello("meter-1"))
    stage.failure = failure
    assert acks(stage.reply(1)) == [Ack(outbox="o1", seqs=[1])]
    assert stage.fleet.get("meter-1").connected  # the handler's effect is gone
    stage.failure = None
    stage.reply(1)
    assert stage.seen == []
    with stage.engine.begin() as connection:
        assert [row.dropped for row in connection.execute(select(received))] == [str(failure)]
    assert stage.core.counters.dropped() == {"refused": 1}


def test_a_report_that_failed_by_our_fault_is_not_acknowledged_and_counts_when_it_comes_again(stage: Stage) -> None:
    stage.failure = RuntimeError("disk full")
    with pytest.raises(RuntimeError):
        stage.reply(1)
    stage.failure = None
    assert acks(stage.reply(1)) == [Ack(outbox="o1", seqs=[1])]
    assert len(stage.seen) == 1


def test_what_is_malformed_too_large_or_from_nobody_is_dropped_and_counted(stage: Stage) -> None:
    up = topics.up("meter-1", "report")
    cases = [
        (up, b"\xc1", "malformed"),
        (up, codec.encode({"type": "hello"}), "malformed"),
        (up, b"x" * (limits.MESSAGE_BYTES + 1), "too large"),
        (topics.up("meter-1", "hello"), b"x" * (limits.CONTROL_BYTES + 1), "too large"),
        (topics.up("meter-1", "nonsense"), b"", "topic"),
        (topics.down("meter-1", "ack"), b"", "topic"),
        ("fleet/v1/dev/../up/hello", b"", "topic"),
        (topics.up("stranger", "gone"), codec.encode(Gone(boot="b", connection=1)), "not enrolled"),
    ]
    for index, (topic, payload, reason) in enumerate(cases, 1):
        assert stage.core.receive(topic, payload, NOW) == []
        assert stage.core.counters.dropped()[reason] >= 1
        assert sum(stage.core.counters.dropped().values()) == index
    registry = CollectorRegistry()
    registry.register(stage.core.counters)
    assert b'fieldfare_gateway_dropped_total{reason="malformed"} 2.0' in generate_latest(registry)


def test_values_that_a_database_cannot_hold_are_dropped_not_failures(stage: Stage) -> None:
    """A NUL character, a text that is too long, a number that is too large: PostgreSQL and SQLite refuse some each."""
    hello = msgspec.structs.replace(stage.hello("meter-1"), boot="b\0" + "x" * 500)
    assert stage.send("hello", hello) == []
    assert stage.send("metadata", MetadataRequest(name="a\0")) is not None
    ref = stage.register()
    bad = [
        stage.receipt("meter-1", ref, outcome="refused", reason="a\0b"),
        stage.receipt("meter-1", ref, rollout="\0"),
        stage.receipt("meter-1", msgspec.structs.replace(ref, sha256="\0" * 64)),
    ]
    for seq, body in enumerate(bad):
        assert acks(stage.send("report", Report(outbox="o1", seq=seq, body=body))) == [Ack(outbox="o1", seqs=[seq])]
    assert acks(stage.reply(9)) == [Ack(outbox="o1", seqs=[9])]
    stage.failure = OverflowError("Python int too large to convert to SQLite INTEGER")
    assert acks(stage.reply(10)) == [Ack(outbox="o1", seqs=[10])]
    stage.failure = ConflictError("about \0")
    assert acks(stage.reply(11)) == [Ack(outbox="o1", seqs=[11])]


def test_a_name_of_an_outbox_that_cannot_be_kept_is_malformed(stage: Stage) -> None:
    stage.reply(1, outbox="a\0")
    assert stage.core.counters.dropped().get("malformed", 0) == (stage.engine.dialect.name == "postgresql")


@given(topic=st.text(max_size=40) | st.sampled_from([topics.up("meter-1", c) for c in ("hello", "report", "pull")]),
       payload=st.binary(max_size=200))  # fmt: skip
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_bytes_on_any_topic_are_survived(stage: Stage, topic: str, payload: bytes) -> None:
    assert stage.core.receive(topic, payload, NOW) == []


def test_a_receipt_of_another_device_is_refused(stage: Stage) -> None:
    ref = stage.register()
    receipt = stage.receipt("meter-2", ref)
    assert len(stage.send("report", Report(outbox="o", seq=1, body=receipt), "meter-1")) == 1
    assert stage.core.counters.dropped() == {"refused": 1}


def test_a_hello_marks_the_device_present_and_brings_what_it_has_not_answered(stage: Stage) -> None:
    stage.instructions.waiting = [("meter-1", instruction()), ("meter-2", instruction("i2"))]
    (answer,) = stage.send("hello", stage.hello("meter-1"))
    assert answer.topic == topics.down("meter-1", "round")
    assert codec.decode(answer.payload, Instruction) == instruction()
    assert stage.fleet.get("meter-1").connected
    stage.send("gone", Gone(boot="b1", connection=1))
    assert not stage.fleet.get("meter-1").connected


def test_a_hello_that_comes_again_or_late_says_nothing_and_an_old_will_ends_nothing(stage: Stage) -> None:
    first, second = stage.site_hellos(2)
    stage.send("hello", second)
    stage.send("hello", first)
    stage.send("hello", second)
    assert stage.core.counters.dropped() == {"replayed": 2}
    hello = stage.fleet.get("meter-1").hello
    assert hello is not None
    assert hello["seq"] == second.seq
    stage.send("gone", Gone(boot="b1", connection=0))
    assert stage.fleet.get("meter-1").connected


def test_metadata_is_answered_file_by_file(stage: Stage) -> None:
    stage.begin()
    answers = [stage.send("metadata", MetadataRequest(name=name))[0] for name in ("1.root.json", "2.root.json", "../x")]
    replies = [codec.decode(answer.payload, MetadataReply) for answer in answers]
    assert [reply.content is None for reply in replies] == [False, True, True]
    assert {answer.topic for answer in answers} == {topics.down("meter-1", "metadata")}


def test_a_large_file_of_metadata_comes_in_pages_that_each_fit_a_message(stage: Stage) -> None:
    stage.begin()
    content = random.Random(1).randbytes(300_000)
    with stage.engine.begin() as connection:
        stage.signing._put(connection, "7.bundles.json", content, NOW)
    packed, reply = b"", None
    while reply is None or len(packed) < reply.size:
        (answer,) = stage.send("metadata", MetadataRequest(name="7.bundles.json", offset=len(packed)))
        assert len(answer.payload) <= limits.MESSAGE_BYTES
        reply = codec.decode(answer.payload, MetadataReply)
        assert (reply.offset, bool(reply.content)) == (len(packed), True)
        packed += reply.content or b""
    assert codec.inflate(packed, limit=300_000, what="it") == content
    (answer,) = stage.send("metadata", MetadataRequest(name="7.bundles.json", offset=2**62))
    assert codec.decode(answer.payload, MetadataReply).content == b""
    assert stage.send("metadata", MetadataRequest(name="7.bundles.json", offset=-1)) == []
    assert stage.core.counters.dropped() == {"malformed": 1}


def test_a_device_gets_a_new_certificate_for_its_key_once_half_of_the_time_is_over(stage: Stage) -> None:
    def renew() -> bytes:
        [answer] = stage.send("renew", RenewalRequest())
        assert answer.topic == topics.down("meter-1", "renew")
        return codec.decode(answer.payload, RenewalReply).certificate.encode()

    with stage.engine.begin() as connection:
        first = stage.fleet.certificate(connection, "meter-1")
    assert first is not None
    stage.now += 14 * 86400
    assert renew() == first
    stage.now += 2 * 86400
    second = renew()
    assert second != first
    assert pki.same_key(first, second)
    assert pki.validity(second)[1] == stage.now + 30 * 86400
    assert renew() == second  # the answer may have been lost
    stage.fleet.revoke("meter-1")
    assert stage.send("renew", RenewalRequest()) == []
    with stage.engine.begin() as connection:
        listed = certificates.revoked(connection, stage.now)
    assert set(listed) == {pki.serial(first), pki.serial(second)}


def test_equal_requests_are_answered_with_one_publication(stage: Stage) -> None:
    data = bytes(range(256)) * 1024  # two blocks
    ref = stage.storage.blobs.put(data)
    stage.instructions.weights = {("meter-1", ref.sha256), ("meter-2", ref.sha256)}
    stage.blocks(ref.sha256, 0, 1)
    stage.blocks(ref.sha256, 1, 0, device="meter-2")
    assert stage.tick(NOW + COALESCE_S / 2) == []
    messages = stage.tick()
    assert [message.topic for message in messages] == [topics.blob(ref.sha256, 0), topics.blob(ref.sha256, 1)]
    assert b"".join(message.payload for message in messages) == data
    assert not any(message.retain for message in messages)
    assert stage.tick() == []


def test_fifty_devices_that_ask_for_one_block_are_answered_by_one_publication_that_no_broker_queues(
    stage: Stage,
) -> None:
    data = bytes(range(256)) * 1024
    ref = stage.storage.blobs.put_artifact(data)
    names = [f"pump-{number}" for number in range(50)]
    for name in names:
        stage.enrol(name)
    stage.instructions.weights = {(name, ref.sha256) for name in names}
    for name in names:
        stage.blocks(ref.sha256, 1, device=name)
    assert [(message.topic, message.qos) for message in stage.tick()] == [(topics.blob(ref.sha256, 1), 0)]


def test_a_bundles_list_of_blocks_may_be_fetched_once_the_bundle_is_signed(stage: Stage) -> None:
    stage.begin()
    ref = stage.register(inference=np.random.default_rng(0).bytes(3 * limits.BLOCK_BYTES))
    listed = blocks.list_digest(stage.storage.blobs.get(ref.sha256))
    assert listed is not None
    stage.blocks(listed, 0)
    assert stage.tick() == []
    stage.sign()
    stage.blocks(listed, 0)
    assert [message.payload for message in stage.tick()] == [blocks.digests(stage.storage.blobs.get(ref.sha256))]


def test_only_signed_bundles_and_a_devices_own_weights_may_be_fetched(stage: Stage) -> None:
    stage.begin()
    ref = stage.register()
    secret = stage.storage.blobs.put(b"another device's weights")
    stage.instructions.weights = {("meter-2", secret.sha256)}
    stage.blocks(secret.sha256, 0)
    stage.blocks(ref.sha256, 0)
    assert stage.core.counters.dropped() == {"not allowed": 2}
    assert stage.tick() == []
    stage.sign()
    stage.blocks(ref.sha256, 0)
    stage.blocks(secret.sha256, 0, device="meter-2")
    assert len(stage.tick()) == 2


@pytest.mark.parametrize("blocks", [[-1], [2**40], list(range(limits.BLOCKS_PER_REQUEST + 1))])
def test_requests_for_blocks_that_cannot_be_are_malformed(stage: Stage, blocks: list[int]) -> None:
    stage.blocks("0" * 64, *blocks)
    assert stage.core.counters.dropped() == {"malformed": 1}


def test_desired_states_and_instructions_are_published_until_the_broker_has_them(stage: Stage) -> None:
    ref = stage.register()
    stage.instructions.waiting = [("meter-2", instruction())]
    with stage.engine.begin() as connection:
        stage.fleet.set_desired(connection, "meter-1", "digits", "r", ref)
    unsent, _ = stage.core.tick(NOW)  # the broker never acknowledged
    messages = stage.tick()
    assert messages == unsent
    desired, round_ = messages
    assert (desired.topic, desired.retain) == (topics.down("meter-1", "desired"), True)
    assert codec.decode_json(desired.payload, Desired) == Desired(
        revision=1, models={"digits": Wanted(revision=1, rollout="r", bundle=ref)}
    )
    assert (round_.topic, round_.retain) == (topics.down("meter-2", "round"), False)
    assert stage.tick() == []
    stage.core.reconnected(session_lost=False)
    assert stage.tick() == [desired]


def test_with_a_lost_session_nobody_counts_as_present_until_it_says_hello(stage: Stage) -> None:
    stage.send("hello", stage.hello("meter-1"))
    stage.core.reconnected(session_lost=False)
    assert stage.fleet.get("meter-1").connected
    stage.core.reconnected(session_lost=True)
    assert not stage.fleet.get("meter-1").connected


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1)), max_size=30))
def test_every_block_asked_for_is_due_once_and_soon(asked: list[tuple[int, float]]) -> None:
    queue = BlockQueue()
    for block, when in sorted(asked, key=lambda pair: pair[1]):
        queue.ask("a", [block], when)
    due = queue.due(2.0)
    assert sorted(block for _, block in due) == sorted({block for block, _ in asked})
    assert queue.due(3.0) == []


def test_one_tick_publishes_a_bounded_number_of_blocks() -> None:
    queue = BlockQueue()
    queue.ask("a", range(PER_TICK + 5), 0.0)
    assert len(queue.due(1.0)) == PER_TICK
    assert len(queue.due(1.0)) == 5


def test_a_block_may_be_asked_for_while_others_are_taken() -> None:
    queue = BlockQueue()

    class Asked(float):
        """A time that is looked at just when the network thread has a request."""

        def __rsub__(self, now: float) -> float:
            queue.ask("b" * 64, [0], now)
            return now - float(self)

    queue.ask("a" * 64, [0, 1], Asked(0.0))
    assert queue.due(COALESCE_S) == [("a" * 64, 0), ("a" * 64, 1)]
    assert queue.due(2 * COALESCE_S) == [("b" * 64, 0)]
