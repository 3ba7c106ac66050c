"""Every reader takes any bytes and says no in its own words; a few thousand inputs here, a million by `make fuzz`."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import Target, refused, targets


@pytest.fixture(scope="module")
def all_targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Target]]:
    with targets(tmp_path_factory.mktemp("fuzz")) as made:
        yield made


def test_every_good_input_is_taken(all_targets: list[Target]) -> None:
    for target in all_targets:
        taken = [seed for seed in target.seeds if not refused(target, seed)]
        assert taken, target.name


@settings(max_examples=300)
@given(seed=st.integers(0, 2**64 - 1))
def test_a_changed_input_is_taken_or_refused(all_targets: list[Target], seed: int) -> None:
    for target in all_targets:
        refused(target, target.make(target.seeds, random.Random(seed)))


@settings(max_examples=300)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(all_targets: list[Target], data: bytes) -> None:
    for target in all_targets:
        refused(target, data)
