"""Patches: applied to their base they give the target to the byte; broken ones are refused within bounds."""

import contextlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from contract import bundle, codec, delta, limits, tensors
from contract.errors import MalformedError, TooLargeError, WireError
from edge_agent import training
from tests.fakes import agent_bundles

DIGITS = Path(__file__).parents[2] / "data" / "digits" / "bundle.zip"


def applied(patch: bytes, base: bytes, limit: int = limits.ARTIFACT_BYTES) -> bytes:
    pieces = delta.apply(patch, lambda at, size: base[at : at + size], base_size=len(base), limit=limit)
    return b"".join(pieces)


def fine_tuned() -> tuple[bytes, bytes]:
    """The digits bundle, and the one after a few steps of training on the device's own samples."""
    old = bundle.unpack(DIGITS.read_bytes())
    assert old.manifest.training is not None
    runtime = training.TrainingRuntime(old.files["training"], old.manifest.training)
    x, y = old.transform.apply(old.golden["x"]), old.golden["logits"].argmax(1)
    start = tensors.load(old.files["weights"])
    trained = training.train(runtime, start, x, y, epochs=3, learning_rate=0.01, momentum=0.0, seed=0).weights
    files = {**old.files, "weights": tensors.dump(trained)}
    return bundle.pack(old.manifest, old.files), bundle.pack(old.manifest, files)


@settings(deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000))
@example(b"", b"")
@example(b"x", b"")
def test_a_patch_gives_the_target_to_the_byte(base: bytes, target: bytes) -> None:
    assert applied(delta.make(base, target), base) == target
    assert applied(delta.make(b"", target), b"") == target


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=1, max_size=2000), st.lists(st.tuples(st.integers(0, 1999), st.integers(0, 255))))
def test_a_patch_between_files_of_one_length_gives_the_target(base: bytes, changes: list[tuple[int, int]]) -> None:
    target = bytearray(base)
    for place, value in changes:
        target[place % len(base)] = value
    assert applied(delta.make(base, bytes(target)), base) == bytes(target)


def test_pieces_of_more_than_their_size_are_split() -> None:
    base = np.random.default_rng(0).bytes(2 * delta.PIECE_BYTES + 12345)
    target = bytes(byte ^ (index % 1000 == 0) for index, byte in enumerate(base))
    patch = delta.make(base, target)
    assert applied(patch, base) == target
    assert len(patch) < len(target) // 20


def test_a_fine_tuned_bundle_is_a_patch_of_half_its_size_and_from_nothing_no_larger_than_deflated() -> None:
    old, new = fine_tuned()
    patch, whole = delta.make(old, new), delta.make(b"", new)
    assert applied(patch, old) == applied(whole, b"") == new
    deflated = DIGITS.stat().st_size
    sizes = f"bundle {len(new)}, deflated {deflated}, from nothing {len(whole)}, patch {len(patch)}"
    assert len(whole) <= deflated, sizes
    assert len(patch) < 0.5 * len(whole), sizes
    assert len(delta.make(new, new)) < 1000


def test_a_bundle_that_an_older_program_deflated_can_be_the_base_and_the_target() -> None:
    old, (_, new) = DIGITS.read_bytes(), fine_tuned()
    assert bundle.unpack(old).manifest == bundle.unpack(fine_tuned()[0]).manifest
    assert applied(delta.make(old, new), old) == new
    assert applied(delta.make(new, old), new) == old


def test_a_bundle_is_the_same_bytes_wherever_it_is_packed() -> None:
    data = agent_bundles.make()
    parts = bundle.unpack(data)
    assert bundle.pack(parts.manifest, parts.files) == data
    assert parts.files["inference"] in data  # stored


def test_a_patch_for_another_base_is_refused_or_gives_another_digest() -> None:
    base, target = bytes(1000), bytes(range(250)) * 4
    patch = delta.make(base, target)
    with pytest.raises(MalformedError, match="1000 bytes, this one has 999"):
        applied(patch, base[1:])
    assert applied(patch, b"\1" * 1000) != target


def test_a_patch_that_would_make_more_than_the_limit_is_refused_before_it_is_unpacked() -> None:
    patch = delta.make(b"", bytes(50_000_000))
    assert len(patch) < 20_000
    with pytest.raises(TooLargeError):
        applied(patch, b"", limit=1_000_000)


def test_a_patch_that_lies_about_its_size_takes_little_memory() -> None:
    bomb = delta.make(b"", bytes(100_000_000))
    header = codec.encode(delta.Header(0, 5, [delta.Piece(5, -1, 1)]))
    lie = len(header).to_bytes(4, "big") + header + bomb[4 + int.from_bytes(bomb[:4], "big") :]
    tracemalloc.start()
    assert applied(lie, b"", limit=10) == bytes(5)  # and its digest is another than the signed one
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    "header",
    [
        delta.Header(0, 4, [delta.Piece(4, -1, 0)]),
        delta.Header(0, 4, [delta.Piece(4, 0, 1)]),
        delta.Header(0, 4, [delta.Piece(4, -1, 3)]),
        delta.Header(0, 4, [delta.Piece(4, -2, 1)]),
        delta.Header(0, 4, [delta.Piece(3, -1, 1)]),
        delta.Header(0, 0, [delta.Piece(0, -1, 1)]),
        delta.Header(0, 2 * delta.PIECE_BYTES, [delta.Piece(2 * delta.PIECE_BYTES, -1, 1)]),
        delta.Header(0, 4, [delta.Piece(8, -1, 1), delta.Piece(-4, -1, 1)]),
    ],
)
def test_a_header_that_cannot_be_is_refused(header: delta.Header) -> None:
    encoded = codec.encode(header)
    with pytest.raises(MalformedError):
        applied(len(encoded).to_bytes(4, "big") + encoded + delta.make(b"", b"abcd")[-20:], b"")


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_patch_or_refused(data: bytes) -> None:
    with contextlib.suppress(WireError):
        applied(data, b"base", limit=10_000)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_broken_or_truncated_patch_is_refused_or_makes_no_more_than_the_limit(data: st.DataObject) -> None:
    base, target = bytes(range(256)) * 8, bytes(reversed(range(256))) * 8
    patch = bytearray(delta.make(base, target))
    patch[data.draw(st.integers(0, len(patch) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(WireError):
        assert len(applied(bytes(patch), base, limit=10_000)) <= 10_000
    for length in range(0, len(patch) - 8, 7):
        with pytest.raises(WireError):
            applied(delta.make(base, target)[:length], base, limit=10_000)
