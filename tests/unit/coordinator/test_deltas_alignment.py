"""What resembles each other where lengths differ: the spans are the target, and the patch is small."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract import delta
from coordinator.deltas import alignment

WEIGHTS = np.random.default_rng(0).normal(0, 20, 200_000).astype(np.int8)


def applied(patch: bytes, base: bytes) -> bytes:
    pieces = delta.apply(patch, lambda at, size: base[at : at + size], base_size=len(base), limit=1 << 24)
    return b"".join(pieces)


def fine_tuned(weights: np.ndarray) -> np.ndarray:
    changed = weights.copy()
    changed[np.random.default_rng(1).integers(0, len(weights), len(weights) // 20)] += 1
    return changed


@settings(deadline=None)
@given(st.binary(max_size=2000), st.binary(max_size=2000), st.integers(0, 2000))
def test_the_spans_one_after_another_are_the_target_and_lie_inside_the_base(base: bytes, new: bytes, cut: int) -> None:
    target = base[cut:] + new + base[:cut]
    position = 0
    for start, size, at in alignment.align(base, target):
        assert (start, size > 0) == (position, True)
        assert at == -1 or 0 <= at <= len(base) - size
        position += size
    assert position == len(target)
    assert applied(delta.make(base, target, alignment.align), base) == target


def test_a_layer_that_was_cut_does_not_make_the_rest_new() -> None:
    base = WEIGHTS.tobytes()
    tuned = fine_tuned(WEIGHTS)
    target = np.concatenate([tuned[:30_000], np.arange(3000).astype(np.int8), tuned[60_001:]]).tobytes()
    patch = delta.make(base, target, alignment.align)
    assert applied(patch, base) == target
    assert len(delta.make(base, target)) > 0.5 * len(target)
    assert len(patch) < 0.1 * len(target)


def test_what_resembles_nothing_is_sent_as_before() -> None:
    base, target = WEIGHTS.tobytes(), np.random.default_rng(5).bytes(50_000)
    assert len(delta.make(base, target, alignment.align)) <= len(delta.make(base, target))


def test_a_patch_of_too_many_pieces_is_made_without_alignment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_SPANS", 1)
    base = WEIGHTS.tobytes()
    target = base[70:1000] + b"x" + base[2000:]
    assert delta.make(base, target, alignment.align) == delta.make(base, target)


def test_what_is_too_large_to_search_is_one_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_BYTES", 999)
    assert list(alignment.align(bytes(1000), b"abc")) == [(0, 3, -1)]
    assert list(alignment.align(b"", bytes(1000))) == [(0, 1000, -1)]
