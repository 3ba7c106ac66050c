"""Pulling blocks: in any order, resumed after a cut, each checked and all as a whole; what waits gives up in time."""

import errno
import hashlib
import resource
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from contract import blocks, limits, topics
from contract.errors import MalformedError
from contract.messages import BlobRef, BlockRequest, Up
from edge_agent.artifacts import Artifacts
from edge_agent.errors import RefusedError, UnavailableError
from edge_agent.transfer import Transfer
from tests.fakes.agent_parts import FakeLink

BLOCK = limits.BLOCK_BYTES


def _content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def _ref(content: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(content).hexdigest(), len(content), blocks.list_digest(content) or "")


class Source:
    """Answers requests for one artifact and its list; block requests in `lost` get no answer."""

    def __init__(self, root: Path, content: bytes, *, lost: int = 0):
        self.content, self.lost = content, lost
        self.ref = _ref(content)
        self.blobs = {self.ref.sha256: content, self.ref.blocks: blocks.digests(content)}
        self.link = FakeLink(self.answer)
        self.stopping = threading.Event()
        self.transfer = Transfer(self.link, retry_s=0.05, patience_s=0.6, stopping=self.stopping)
        self.pull = Artifacts(root, self.transfer.fill).pull

    def answer(self, message: Up) -> None:
        if isinstance(message, BlockRequest):
            if self.lost:
                self.lost -= 1
                return
            for index in reversed(message.blocks):
                self.give(message.sha256, index)

    def give(self, sha256: str, index: int) -> None:
        assert self.link.patterns.get(topics.blob(sha256, index)) == 0
        self.transfer.accept_block(sha256, index, self.blobs[sha256][index * BLOCK : (index + 1) * BLOCK])

    def asked(self) -> list[int]:
        """Blocks of the artifact."""
        requests = [message for message in self.link.sent if isinstance(message, BlockRequest)]
        return [index for request in requests if request.sha256 == self.ref.sha256 for index in request.blocks]


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 20 * BLOCK + 7])
def test_an_artifact_of_any_size_comes_whole_and_its_subscriptions_end(tmp_path: Path, size: int) -> None:
    source = Source(tmp_path, _content(size))
    path = source.pull(source.ref)
    assert path.read_bytes() == source.content
    assert sorted(source.asked()) == list(range(-(-size // BLOCK)))
    assert source.link.patterns == {}
    assert list(tmp_path.iterdir()) == [path]


def test_an_artifact_without_a_list_comes_whole_too(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(3 * BLOCK + 1))
    assert source.pull(BlobRef(source.ref.sha256, source.ref.size)).read_bytes() == source.content
    assert sorted(source.asked()) == [0, 1, 2, 3]


def test_a_cut_pull_asks_only_for_what_is_missing_or_broken(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(6 * BLOCK))
    broken = bytearray(source.content[: 4 * BLOCK + 5])
    broken[BLOCK + 7] ^= 1
    (tmp_path / f"{source.ref.sha256}.part").write_bytes(broken)
    assert source.pull(source.ref).read_bytes() == source.content
    assert sorted(source.asked()) == [1, 4, 5]


def test_a_part_file_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    part = tmp_path / f"{source.ref.sha256}.part"
    part.write_bytes(source.content)
    part.chmod(0)
    assert source.pull(source.ref).read_bytes() == source.content


def test_a_request_without_an_answer_is_repeated(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(BLOCK), lost=2)
    source.transfer._patience_s = 20.0
    assert source.pull(source.ref).read_bytes() == source.content
    assert source.asked() == [0, 0, 0]


def test_what_was_on_its_way_when_the_connection_ended_is_asked_for_at_once(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    source.transfer = Transfer(source.link, retry_s=1e6, patience_s=1e6, stopping=source.stopping)
    real = source.answer

    def cut(message: Up) -> None:
        if source.link.connections == 1 and isinstance(message, BlockRequest) and message.sha256 == source.ref.sha256:
            source.give(message.sha256, 0)
            source.link.connections = 2
        else:
            real(message)

    source.link.answer = cut
    pull = Artifacts(tmp_path, source.transfer.fill).pull
    assert pull(source.ref).read_bytes() == source.content
    assert source.asked() == [0, 1, 1]


def test_without_a_connection_nothing_is_lost_and_the_blocks_are_asked_for_when_there_is_one(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(BLOCK))
    source.link.up = False
    timer = threading.Timer(0.3, lambda: setattr(source.link, "up", True))
    timer.start()
    assert source.pull(source.ref).read_bytes() == source.content
    assert source.asked() == [0]
    timer.join()


def test_content_with_another_digest_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    for size in (BLOCK, 2 * BLOCK):
        source = Source(tmp_path, _content(size))
        source.blobs[source.ref.sha256] = bytes(size)
        with pytest.raises(RefusedError, match="SHA-256"):
            source.pull(source.ref)
        assert list(tmp_path.iterdir()) == []
        assert len(source.asked()) <= 4


def test_without_a_list_content_with_another_digest_is_refused_after_a_second_try(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    source.blobs[source.ref.sha256] = bytes(2 * BLOCK)
    with pytest.raises(RefusedError, match="SHA-256"):
        source.pull(BlobRef(source.ref.sha256, source.ref.size))
    assert sorted(source.asked()) == [0, 0, 1, 1]
    assert list(tmp_path.iterdir()) == []


def test_a_short_list_that_came_along_is_not_asked_for(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(3 * BLOCK))
    blob = BlobRef(source.ref.sha256, source.ref.size, blocks.inline(blocks.digests(source.content)))
    assert source.pull(blob).read_bytes() == source.content
    assert {message.sha256 for message in source.link.sent if isinstance(message, BlockRequest)} == {blob.sha256}
    with pytest.raises(MalformedError):
        source.pull(BlobRef(blob.sha256, blob.size, "x" * len(blob.blocks)))


def test_a_list_that_names_another_artifact_is_refused(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    other = blocks.digests(bytes(2 * BLOCK))
    digest = hashlib.sha256(other).hexdigest()
    source.blobs[digest] = other
    with pytest.raises(RefusedError, match="listed"):
        source.pull(BlobRef(source.ref.sha256, source.ref.size, digest))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [-1, limits.ARTIFACT_BYTES + 1])
def test_an_artifact_of_an_impossible_size_is_refused_before_anything_is_asked_or_written(
    tmp_path: Path, size: int
) -> None:
    source = Source(tmp_path, b"")
    with pytest.raises(RefusedError, match="limit"):
        source.pull(BlobRef("0" * 64, size))
    assert source.link.sent == []
    assert list(tmp_path.iterdir()) == []


def test_silence_is_given_up_and_what_came_stays(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(3 * BLOCK))
    real = source.answer

    def without_the_last(message: Up) -> None:
        if isinstance(message, BlockRequest):
            real(BlockRequest(sha256=message.sha256, blocks=[index for index in message.blocks if index != 2]))

    source.link.answer = without_the_last
    with pytest.raises(UnavailableError, match="resumed"):
        source.pull(source.ref)
    assert source.link.patterns == {}
    source.stopping.set()
    source.transfer._patience_s = 1e9
    with pytest.raises(UnavailableError):
        source.pull(source.ref)
    source.stopping.clear()
    del source.link.sent[:]
    source.link.answer = real
    assert source.pull(source.ref).read_bytes() == source.content
    assert source.asked() == [2]


def test_bytes_on_the_wire_are_a_sign_of_life_for_a_while(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(BLOCK), lost=1)
    source.transfer = Transfer(source.link, retry_s=0.5, patience_s=0.1, stopping=source.stopping)
    source.link.quiet = 0.0
    timer = threading.Timer(0.4, lambda: source.give(source.ref.sha256, 0))
    timer.start()
    pull = Artifacts(tmp_path, source.transfer.fill).pull
    assert pull(source.ref).read_bytes() == source.content  # 0.4 s after the request, of which none was silent
    assert source.asked() == [0]
    timer.join()


def test_a_block_that_nobody_waits_for_ends_a_forgotten_subscription(tmp_path: Path) -> None:
    source = Source(tmp_path, b"")
    source.link.subscribe(topics.blob("a" * 64, 3), qos=0)
    source.transfer.accept_block("a" * 64, 3, b"x")
    assert source.link.patterns == {}


def test_a_pull_that_its_caller_gave_up_leaves_nothing_behind(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    with pytest.raises(UnavailableError):
        source.pull(source.ref, give_up=lambda: len(source.asked()) > 8)
    assert list(tmp_path.iterdir()) == []
    assert source.link.patterns == {}


def test_a_full_disk_keeps_no_half_of_an_artifact(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * BLOCK + 17, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            source.pull(source.ref)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    assert source.pull(source.ref).read_bytes() == source.content


def test_where_there_is_no_room_no_block_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Source(tmp_path, _content(3 * BLOCK))
    usage = shutil.disk_usage(tmp_path)._replace(free=2 * BLOCK)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(OSError, match="393216 bytes are to come, 262144 are free") as caught:
        source.pull(source.ref)
    assert caught.value.errno == errno.ENOSPC
    assert source.asked() == []
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_comes_again_and_again_is_held_once(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    real, held = source.answer, []

    def flood(message: Up) -> None:
        if isinstance(message, BlockRequest) and message.sha256 == source.ref.sha256:
            pull = source.transfer._pulls[message.sha256]
            for index in [*message.blocks, *range(20)] * 20:
                source.transfer.accept_block(message.sha256, index, source.content[index * BLOCK : (index + 1) * BLOCK])
            held.append(pull._blocks.qsize())
        else:
            real(message)

    source.link.answer = flood
    assert source.pull(source.ref).read_bytes() == source.content
    assert max(held) <= 8
