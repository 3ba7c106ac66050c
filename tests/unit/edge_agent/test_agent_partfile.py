"""A part file: any order, any repeats, any strangers, any broken byte on disk, and the file is right in the end."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import blocks, limits
from contract.errors import MalformedError
from contract.messages import BlobRef
from edge_agent.partfile import PartFile

BLOCK = limits.BLOCK_BYTES


def _artifact(size: int) -> tuple[bytes, BlobRef]:
    content = np.random.default_rng(size).bytes(size)
    return content, BlobRef(hashlib.sha256(content).hexdigest(), size)


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_blocks_in_any_order_with_repeats_and_strangers_give_the_file(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, listed: bool
) -> None:
    content, blob = _artifact(data.draw(st.integers(1, 6 * BLOCK)))
    part = PartFile(tmp_path_factory.mktemp("part") / "x.part", blob, blocks.digests(content) if listed else b"")
    while not part.complete:
        index = data.draw(st.sampled_from([*part.missing(9), 0, 99, -1]))
        block = content[index * BLOCK : (index + 1) * BLOCK] if index >= 0 else b""
        wanted = part.lacks(index)
        assert part.accept(index, block + b"x") is False
        assert part.accept(index, block) is wanted
    assert part.digest() == part.blob.sha256
    assert part.left == 0


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_whatever_the_disk_did_to_the_file_only_broken_blocks_are_missing_after_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content, blob = _artifact(data.draw(st.integers(1, 5 * BLOCK)))
    path = tmp_path_factory.mktemp("part") / "x.part"
    kept = bytearray(content[: data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=20)))
    flips = data.draw(st.lists(st.integers(0, max(0, len(kept) - 1)), max_size=3)) if kept else []
    for place in flips:
        kept[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(kept)
    part = PartFile(path, blob, blocks.digests(content))
    whole = [
        index
        for index in range(blocks.count(blob.size))
        if bytes(kept[: blob.size][index * BLOCK : (index + 1) * BLOCK]) == content[index * BLOCK : (index + 1) * BLOCK]
    ]
    assert part.missing(99) == [index for index in range(blocks.count(blob.size)) if index not in whole]
    for index in part.missing(99):
        assert part.accept(index, content[index * BLOCK : (index + 1) * BLOCK])
    assert path.read_bytes() == content


def test_a_block_that_the_list_does_not_name_is_counted_and_not_written(tmp_path: Path) -> None:
    content, blob = _artifact(2 * BLOCK)
    part = PartFile(tmp_path / "x.part", blob, blocks.digests(content))
    assert not part.accept(0, bytes(BLOCK))
    assert (part.rejected, part.missing(9), part.path.stat().st_size) == (1, [0, 1], 0)


def test_a_list_of_another_length_is_refused(tmp_path: Path) -> None:
    _, blob = _artifact(2 * BLOCK)
    with pytest.raises(MalformedError, match="32 bytes cannot name the 2 blocks"):
        PartFile(tmp_path / "x.part", blob, bytes(32))


def test_the_list_of_the_largest_artifact_fits_into_one_block() -> None:
    assert blocks.count(limits.ARTIFACT_BYTES) * blocks.DIGEST_BYTES <= BLOCK
    content, _ = _artifact(3 * BLOCK + 1)
    assert blocks.list_digest(content) == hashlib.sha256(blocks.digests(content)).hexdigest()
    assert blocks.list_digest(content[:BLOCK]) is None
    assert [blocks.length(3 * BLOCK + 1, index) for index in range(5)] == [BLOCK, BLOCK, BLOCK, 1, 0]
