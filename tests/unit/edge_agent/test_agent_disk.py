"""A new bundle finds room within the budget and on the disk, or is refused with both numbers; what serves stays."""

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from edge_agent.config import Runtime, Updates
from edge_agent.disk import Disk
from edge_agent.errors import RefusedError
from tests.fakes import agent_bundles
from tests.fakes.agent_parts import CONFIG, Parts

SHA, MIB = "f" * 64, 1024 * 1024


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    """Two models with a bundle and a fallback each, both good; `fourths` matters more."""
    made = Parts(tmp_path, msgspec.structs.replace(CONFIG, runtime=Runtime(priority={"fourths": 1})))
    made.folder.staging.mkdir()
    revision = 0
    for model in ("thirds", "fourths"):
        for version in (1, 2):
            revision += 1
            bundle = agent_bundles.make(model=model, version=version)
            made.sign(bundle)
            made.want(revision, bundle)
            made.settle(model)
    yield made
    made.state.close()


def _disk(parts: Parts, *, room: int = MIB, free: int = 100 * MIB, now: float = 1e9) -> Disk:
    """With a budget of so many bytes more than what is used."""
    used = Disk(parts.config, parts.folder, state=parts.state, switch=parts.switch).used()
    config = msgspec.structs.replace(parts.config, updates=Updates(disk_bytes=used + room))
    return Disk(config, parts.folder, state=parts.state, switch=parts.switch, free=lambda _: free, clock=lambda: now)


def _fallbacks(parts: Parts) -> list[str]:
    return [name for name, placement in parts.state.models.all().items() if placement.previous is not None]


def test_where_there_is_room_nothing_goes(parts: Parts) -> None:
    (parts.folder.staging / f"{SHA}.part").write_bytes(bytes(1000))
    _disk(parts).make_room("thirds", SHA, MIB + 1000)  # of which 1000 are there
    assert _fallbacks(parts) == ["fourths", "thirds"]


def test_abandoned_pulls_go_first_and_those_that_grow_stay(parts: Parts) -> None:
    for name, age in (("a", 1e9 - 601), ("b", 1e9 - 599)):
        path = parts.folder.staging / f"{name * 64}.part"
        path.write_bytes(bytes(50_000))
        os.utime(path, (age, age))
    _disk(parts, room=0).make_room("thirds", SHA, 50_000)
    assert [path.name[0] for path in parts.folder.staging.glob("*.part")] == ["b"]
    assert _fallbacks(parts) == ["fourths", "thirds"]


@pytest.mark.parametrize(("model", "stays"), [("thirds", "fourths"), ("fourths", "thirds"), ("new", "fourths")])
def test_then_fallbacks_go_of_the_model_itself_and_of_those_that_matter_least(
    parts: Parts, model: str, stays: str
) -> None:
    _disk(parts, room=0).make_room(model, SHA, 1000)
    assert _fallbacks(parts) == [stays]
    slots = sorted(str(path.relative_to(parts.folder.slots)) for path in parts.folder.slots.rglob("bundle.zip"))
    assert len(slots) == 3
    assert (parts.served("thirds"), parts.served("fourths")) == (2, 2)


def test_what_does_not_fit_at_all_is_refused_with_the_numbers_and_what_serves_stays(parts: Parts) -> None:
    with pytest.raises(RefusedError, match=r"no room for 9000000 bytes: .* updates\.disk_bytes is"):
        _disk(parts).make_room("thirds", SHA, 9_000_000)
    assert (parts.served("thirds"), parts.served("fourths")) == (2, 2)
    with pytest.raises(RefusedError, match="the disk has 5000 free"):
        _disk(parts, free=5000).make_room("thirds", SHA, 10)


def test_the_fallback_of_a_bundle_on_probation_does_not_go(parts: Parts) -> None:
    third = agent_bundles.make(version=3)
    parts.sign(third)
    parts.want(9, third)
    with pytest.raises(RefusedError):
        _disk(parts, room=0).make_room("new", SHA, 10**9)
    assert _fallbacks(parts) == ["thirds"]


def test_a_bundle_for_which_there_is_no_room_is_refused_before_it_is_fetched(tmp_path: Path) -> None:
    parts = Parts(tmp_path, msgspec.structs.replace(CONFIG, updates=Updates(disk_bytes=1000)))
    bundle = agent_bundles.make()
    parts.sign(bundle)
    parts.want(1, bundle)
    assert "updates.disk_bytes is 1000" in parts.receipts()[-1].reason
    assert not parts.folder.staging.exists()
    parts.state.close()
