"""Patches between signed bundles: made once, answered to all who wait, and only for what devices may have."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from contract import blocks, codec, delta, topics
from contract.messages import BlobRef, BundleRef, DeltaReply, DeltaRequest
from coordinator.deltas import service
from coordinator.deltas.service import Deltas
from coordinator.deltas.tables import patches
from coordinator.gateway.core import Core, Outgoing
from tests.fakes.fleet_site import Instructions, NoCommands, Site

NOW = 1_700_000_000.0
WEIGHTS = np.random.default_rng(0).standard_normal(150_000).astype(np.float32)


class Stage(Site):
    def __init__(self, state: Path, database: str) -> None:
        super().__init__(state, database=database)
        self.deltas = Deltas(self.storage, self.signing)
        self.core = Core(
            self.storage, self.fleet, self.signing, {}, Instructions(), commands=NoCommands(), deltas=self.deltas
        )
        for name in ("meter-1", "meter-2"):
            self.enrol(name)
        self.begin()
        self.old = self.register(1, inference=WEIGHTS.tobytes())
        self.new = self.register(2, inference=(WEIGHTS * np.float32(1.0001)).tobytes())
        self.sign()

    def ask(self, base: str, target: str, device: str = "meter-1") -> list[DeltaReply]:
        payload = codec.encode(DeltaRequest(base=base, target=target))
        return replies(self.core.receive(topics.up(device, "delta"), payload, NOW), device)

    def due(self, device: str = "meter-1") -> list[DeltaReply]:
        return replies(self.core.tick(NOW)[0], device)

    def made(self) -> BlobRef:
        """The patch as it is stored."""
        with self.engine.begin() as connection:
            row = connection.execute(select(patches)).one()
        return BlobRef(row.sha256, row.size, row.blocks)

    def data(self, ref: BundleRef | BlobRef) -> bytes:
        return self.storage.blobs.get(ref.sha256)


def replies(messages: list[Outgoing], device: str) -> list[DeltaReply]:
    found = [message for message in messages if message.topic == topics.down(device, "delta")]
    return [codec.decode(message.payload, DeltaReply) for message in found]


@pytest.fixture
def stage(tmp_path: Path, database: str) -> Iterator[Stage]:
    made = Stage(tmp_path, database)
    yield made
    made.close()


def test_who_waits_is_answered_when_the_patch_is_made_and_who_asks_later_at_once(stage: Stage) -> None:
    for device in ("meter-1", "meter-2", "meter-1"):
        assert stage.ask(stage.old.sha256, stage.new.sha256, device) == []
    assert stage.due() == []
    stage.deltas.tick(NOW)
    messages = stage.core.tick(NOW)[0]
    (reply,) = replies(messages, "meter-1")
    assert replies(messages, "meter-2") == [reply]
    assert reply.blob is not None
    base, target, patch = stage.data(stage.old), stage.data(stage.new), stage.data(reply.blob)
    pieces = delta.apply(patch, lambda at, size: base[at : at + size], base_size=len(base), limit=len(target))
    assert b"".join(pieces) == target
    assert len(patch) < len(target) // 2
    assert blocks.count(len(patch)) == 2
    assert reply.blob.blocks == blocks.digests(patch).hex()  # short enough to come with the answer
    assert stage.due() == []
    assert stage.ask(stage.old.sha256, stage.new.sha256) == [reply]
    made = stage.made()
    with stage.engine.begin() as connection:
        assert stage.core.may_fetch(connection, "meter-2", reply.blob.sha256, NOW)
        assert stage.core.may_fetch(connection, "meter-2", made.blocks, NOW)
        assert not stage.core.may_fetch(connection, "meter-2", "", NOW)


def test_a_patch_survives_a_restart_and_is_made_once(stage: Stage) -> None:
    stage.ask("", stage.new.sha256)
    stage.deltas.tick(NOW)
    (reply,) = stage.due()
    again = Deltas(stage.storage, stage.signing)
    with stage.engine.begin() as connection:
        assert again.ask(connection, "meter-1", DeltaRequest(base="", target=stage.new.sha256)) == reply
        assert connection.execute(select(func.count()).select_from(patches)).scalar() == 1


def test_what_may_have_no_patch_is_answered_with_none(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    unsigned = stage.register(3, inference=b"nobody signed it")
    secret = stage.storage.blobs.put(b"another device's weights")
    pairs = [
        (stage.old.sha256, unsigned.sha256),
        (unsigned.sha256, stage.new.sha256),
        (secret.sha256, stage.new.sha256),
        ("", secret.sha256),
        (stage.new.sha256, stage.new.sha256),
        (stage.old.sha256, ""),
        ("../../etc", stage.new.sha256),
        (stage.old.sha256, "x" * 64),
    ]
    for base, target in pairs:
        assert [reply.blob for reply in stage.ask(base, target)] == [None]
    monkeypatch.setattr(service, "MAKE_BYTES", 1000)
    assert [reply.blob for reply in stage.ask(stage.old.sha256, stage.new.sha256)] == [None]
    monkeypatch.setattr(service, "MAKE_BYTES", 10**9)
    monkeypatch.setattr(service, "QUEUED", 0)
    assert [reply.blob for reply in stage.ask(stage.old.sha256, stage.new.sha256)] == [None]


def test_a_patch_that_is_not_smaller_or_cannot_be_made_is_answered_with_none(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = stage.register(4, inference=np.random.default_rng(1).bytes(200_000))
    stage.sign()
    stage.ask("", noise.sha256)
    stage.deltas.tick(NOW)
    assert [reply.blob for reply in stage.due()] == [None]
    assert [reply.blob for reply in stage.ask("", noise.sha256)] == [None]
    stage.ask(stage.old.sha256, stage.new.sha256)
    monkeypatch.setattr(delta, "make", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage.deltas.tick(NOW)
    assert [reply.blob for reply in stage.due()] == [None]
