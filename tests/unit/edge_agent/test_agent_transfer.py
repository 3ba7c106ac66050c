"""Pulling blocks: in any order, resumed after a cut, checked as a whole; and what waits gives up in time."""

import hashlib
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import limits, topics
from contract.messages import BlobRef, BlockRequest, Up
from edge_agent.errors import RefusedError, UnavailableError
from edge_agent.transfer import PartFile, Transfer
from tests.fakes.agent_parts import FakeLink

BLOCK = limits.BLOCK_BYTES


def _content(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def _ref(content: bytes) -> BlobRef:
    return BlobRef(hashlib.sha256(content).hexdigest(), len(content))


class Source:
    """Answers requests for one artifact; block requests in `lost` get no answer."""

    def __init__(self, root: Path, content: bytes, *, lost: int = 0):
        self.content, self.lost = content, lost
        self.link = FakeLink(self.answer)
        self.stopping = threading.Event()
        self.transfer = Transfer(self.link, root, retry_s=0.05, patience_s=0.6, stopping=self.stopping)

    def answer(self, message: Up) -> None:
        if isinstance(message, BlockRequest):
            if self.lost:
                self.lost -= 1
                return
            for index in reversed(message.blocks):
                self.transfer.accept_block(message.sha256, index, self.content[index * BLOCK : (index + 1) * BLOCK])

    def asked(self) -> list[int]:
        return [block for message in self.link.sent if isinstance(message, BlockRequest) for block in message.blocks]


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 20 * BLOCK + 7])
def test_an_artifact_of_any_size_comes_whole_and_the_subscription_ends(tmp_path: Path, size: int) -> None:
    source = Source(tmp_path, _content(size))
    path = source.transfer.pull(_ref(source.content))
    assert path.read_bytes() == source.content
    assert source.asked() == list(range(-(-size // BLOCK)))
    assert source.link.patterns == set()


def test_a_cut_pull_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(4 * BLOCK))
    ref = _ref(source.content)
    (tmp_path / f"{ref.sha256}.part").write_bytes(source.content[: 2 * BLOCK + 5])
    assert source.transfer.pull(ref).read_bytes() == source.content
    assert source.asked() == [2, 3]


def test_a_request_without_an_answer_is_repeated(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(3 * BLOCK), lost=2)
    assert source.transfer.pull(_ref(source.content)).read_bytes() == source.content
    assert len(source.link.sent) == 3


def test_a_broken_part_file_is_pulled_again_from_nothing(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    ref = _ref(source.content)
    (tmp_path / f"{ref.sha256}.part").write_bytes(b"\0" * BLOCK)
    assert source.transfer.pull(ref).read_bytes() == source.content
    assert source.asked() == [1, 0, 1]


def test_content_with_another_digest_is_refused(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(2 * BLOCK))
    ref = BlobRef("a" * 64, len(source.content))
    with pytest.raises(RefusedError, match="SHA-256"):
        source.transfer.pull(ref)
    assert list(tmp_path.iterdir()) == []


def test_an_artifact_beyond_the_limit_is_not_asked_for(tmp_path: Path) -> None:
    source = Source(tmp_path, b"")
    with pytest.raises(RefusedError, match="limit"):
        source.transfer.pull(BlobRef("a" * 64, limits.ARTIFACT_BYTES + 1))
    assert source.link.sent == []


def test_silence_is_given_up_and_what_came_stays(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(BLOCK), lost=1000)
    with pytest.raises(UnavailableError, match="resumed"):
        source.transfer.pull(_ref(source.content))
    source.stopping.set()
    source.transfer._patience_s = 1e9
    with pytest.raises(UnavailableError):
        source.transfer.pull(_ref(source.content))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_block_that_nobody_waits_for_ends_a_forgotten_subscription(tmp_path: Path) -> None:
    source = Source(tmp_path, b"")
    source.link.patterns.add(topics.all_blocks("a" * 64))
    source.transfer.accept_block("a" * 64, 0, b"x")
    assert source.link.patterns == set()


@given(st.data())
def test_blocks_in_any_order_with_repeats_and_strangers_give_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = _content(data.draw(st.integers(1, 6 * BLOCK)))
    part = PartFile(tmp_path_factory.mktemp("part") / "x.part", _ref(content))
    while not part.complete:
        index = data.draw(st.sampled_from([*part.missing(), 0, 99]))
        block = content[index * BLOCK : (index + 1) * BLOCK]
        wanted = index in part.missing()
        assert part.accept(index, block + b"x") is False
        assert part.accept(index, block) is wanted
    assert part.digest() == part.blob.sha256


def test_a_pull_that_its_caller_gave_up_leaves_nothing_behind(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    with pytest.raises(UnavailableError):
        source.transfer.pull(_ref(source.content), give_up=lambda: len(source.asked()) > 8)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_no_half_of_an_artifact(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5 * BLOCK + 17, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            source.transfer.pull(_ref(source.content))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []
    assert source.transfer.pull(_ref(source.content)).read_bytes() == source.content


def test_blocks_that_come_faster_than_the_disk_are_dropped_and_asked_for_again(tmp_path: Path) -> None:
    source = Source(tmp_path, _content(20 * BLOCK))
    real, held = source.answer, []

    def flood(message: Up) -> None:
        if isinstance(message, BlockRequest):
            for _ in range(100):
                source.transfer.accept_block(message.sha256, 19, source.content[19 * BLOCK :])
            held.append(source.transfer._blocks[message.sha256][1].qsize())
        real(message)

    source.link.answer = flood
    assert source.transfer.pull(_ref(source.content)).read_bytes() == source.content
    assert max(held) <= 16


@pytest.mark.parametrize("size", [-1, limits.ARTIFACT_BYTES + 1])
def test_an_artifact_of_an_impossible_size_is_refused_before_anything_is_written(tmp_path: Path, size: int) -> None:
    source = Source(tmp_path, b"")
    with pytest.raises(RefusedError, match="bytes"):
        source.transfer.pull(BlobRef("0" * 64, size))
    assert list(tmp_path.iterdir()) == []
