"""Samples that apps hand in: whole or not there, bounded, unreadable without the key, and bound to their place."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import files, samples, samplestore
from edge_agent.errors import SampleError
from edge_agent.samplestore import SampleStore
from tests.fakes.faulty_disk import KINDS, FaultyDisk, Kind, PowerLoss

SHAPE = (4,)
HEADER = samplestore._HEADER.size
X = np.arange(4, dtype=np.float32)


class Store:
    """A store on a clock that is set."""

    def __init__(self, root: Path, *, quota_bytes: int = 1_000_000, keep_s: float = 1000.0) -> None:
        self.folder = root / "samples"
        self.now = 0.0
        self.events: list[str] = []
        self.quota_bytes, self.keep_s = quota_bytes, keep_s
        self.start()

    def start(self) -> None:
        """As the agent starts."""
        self.store = SampleStore(
            self.folder,
            quota_bytes=self.quota_bytes,
            keep_s=self.keep_s,
            clock=lambda: self.now,
            event=self.events.append,
        )

    def add(self, *labels: int, model: str = "thirds") -> None:
        """A record of samples; what they hold says which they are."""
        self.store.add(model, np.stack([X + 10 * label for label in labels]), np.array(labels, np.int64))

    def read(self, model: str = "thirds", *, limit: int = 1000) -> tuple[list[int], int]:
        """Labels, the newest record first, and how many records were damaged; the samples are those of the labels."""
        before = self.store.not_before()
        got, damaged = samplestore.newest(self.folder, model, input_shape=SHAPE, limit=limit, not_before=before)
        if got is None or got.y is None:
            return [], damaged
        np.testing.assert_array_equal(got.x, np.stack([X + 10 * label for label in got.y]))
        return got.y.tolist(), damaged

    def segments(self) -> list[Path]:
        return sorted(self.folder.glob("*/*.seg"), key=lambda path: path.name)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_what_was_added_is_read_newest_first_also_after_a_restart(store: Store) -> None:
    assert not store.folder.exists()
    store.add(1, 2)
    store.add(3)
    store.start()
    store.add(4, 5)
    store.add(9, model="other")
    assert store.read() == ([4, 5, 3, 1, 2], 0)
    assert store.read(limit=3) == ([4, 5, 3], 0)
    assert store.read("other") == ([9], 0)
    assert store.read("nobody") == ([], 0)
    assert store.store.counts() == {"thirds": 5, "other": 1}
    store.start()
    assert store.store.counts() == {"thirds": 5, "other": 1}
    assert not store.events
    got, _ = samplestore.newest(store.folder, "thirds", input_shape=(7,), limit=9, not_before=0)
    assert got is None


def test_files_are_for_their_owner_alone_and_show_nothing(store: Store) -> None:
    random = np.random.default_rng(0).integers(0, 256, (8, 64), dtype=np.uint8)
    store.store.add("thirds", random, np.zeros(8, np.int64))
    for path in [store.folder, *store.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    content = b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file())
    assert not [row for row in random if row.tobytes()[:8] in content]


def test_no_two_records_share_a_nonce(store: Store) -> None:
    for _ in range(100):
        store.add(1)
    records = [
        path.read_bytes()[offset + HEADER : offset + HEADER + 12]
        for path in store.segments()
        for _, offset in samplestore._headers(path)
    ]
    assert len(records) == len(set(records)) == 100


@given(cut=st.integers(0, 10_000))
@settings(max_examples=60)
def test_a_kill_at_any_byte_loses_at_most_the_record_that_was_being_written(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    store = Store(tmp_path_factory.mktemp("s"))
    for label in range(3):
        store.add(label)
    (segment,) = store.segments()
    content = segment.read_bytes()
    whole = len(content) // 3
    cut %= len(content) + 1
    segment.write_bytes(content[:cut])
    store.start()
    kept = list(range(cut // whole))
    assert store.read() == (kept[::-1], 0)
    assert sum(store.store.counts().values()) == len(kept)
    store.add(7)
    assert store.read() == ([7, *kept[::-1]], 0)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
@settings(max_examples=100)
def test_a_flipped_bit_never_becomes_a_sample(tmp_path_factory: pytest.TempPathFactory, at: int, bit: int) -> None:
    store = Store(tmp_path_factory.mktemp("s"))
    for label in range(3):
        store.add(label)
    (segment,) = store.segments()
    content = bytearray(segment.read_bytes())
    content[at % len(content)] ^= 1 << bit
    segment.write_bytes(content)
    store.start()
    labels, damaged = store.read()
    assert set(labels) < {0, 1, 2}
    length_was_hit = at % len(content) % (len(content) // 3) < 4
    assert damaged == 1 or length_was_hit or at % len(content) % (len(content) // 3) in range(8, 16)
    store.add(8)
    assert store.read()[0][0] == 8


def test_a_record_in_another_place_model_or_segment_is_none(store: Store) -> None:
    store.add(1)
    store.add(2)
    (first,) = store.segments()
    content = first.read_bytes()
    half = len(content) // 2
    first.write_bytes(content[half:] + content[:half])
    assert store.read() == ([], 2)
    first.write_bytes(content)
    assert store.read() == ([2, 1], 0)
    shutil.copy(first, first.with_name("0000000009.seg"))
    assert store.read() == ([2, 1], 2)
    (store.folder / "other").mkdir()
    first.rename(store.folder / "other" / first.name)
    assert store.read("other") == ([], 2)


@pytest.mark.parametrize("damage", ["gone", "short", "flipped"])
def test_without_its_key_a_store_is_emptied_and_begins_again(store: Store, damage: str) -> None:
    store.add(1)
    key = store.folder / "key"
    content = bytearray(key.read_bytes())
    if damage == "gone":
        key.unlink()
    else:
        content[5] ^= 1
        key.write_bytes(content[:20] if damage == "short" else content)
    assert store.read() == ([], 0)
    store.start()
    assert "the key of the kept samples is missing or damaged; 1 files" in store.events[0]
    assert not store.segments()
    store.add(2)
    assert store.read() == ([2], 0)


def test_what_cannot_be_read_now_is_passed_over_and_never_given_up(store: Store) -> None:
    store.add(1)
    store.start()
    store.add(2)
    first, _ = store.segments()
    hidden = first.read_bytes()
    first.unlink()
    first.mkdir()  # a file that cannot be read, whoever we are
    store.start()
    assert store.store.counts() == {"thirds": 1}
    assert store.read() == ([2], 1)
    first.rmdir()
    first.write_bytes(hidden)
    key = store.folder / "key"
    kept = key.read_bytes()
    key.unlink()
    key.mkdir()
    store.start()
    assert "samples cannot be kept" in store.events[-1]
    with pytest.raises(OSError, match="Is a directory"):
        store.add(3)
    assert store.read() == ([], 0)
    key.rmdir()
    key.write_bytes(kept)
    store.start()
    store.add(4)
    assert store.read() == ([4, 2, 1], 0)


def test_a_quota_is_a_ring_over_all_models(tmp_path: Path) -> None:
    store = Store(tmp_path, quota_bytes=16_000)
    for label in range(300):
        store.add(label % 100, model=("thirds", "other")[label % 2])
        assert sum(path.stat().st_size for path in store.segments()) <= 16_000
    assert store.read()[0][:3] == [98, 96, 94]
    assert store.read("other")[0][:3] == [99, 97, 95]
    assert 40 < sum(store.store.counts().values()) < 300
    with pytest.raises(SampleError, match=r"a sixteenth of .*; send fewer"):
        store.add(*range(100))


def test_samples_expire_and_a_slow_trickle_does_too(tmp_path: Path) -> None:
    store = Store(tmp_path, keep_s=100.0)
    for label in range(40):
        store.now = 10.0 * label
        store.add(label)
        labels, _ = store.read()
        assert labels == list(range(label, max(label - 11, -1), -1))
    assert sum(store.store.counts().values()) <= 12
    store.now += 101.0
    assert store.store.counts() == {}
    assert not store.segments()


def test_a_clock_that_goes_back_loses_nothing(store: Store) -> None:
    store.now = 1e6
    store.add(1)
    store.now = 0.0
    store.start()
    store.add(2)
    assert store.read() == ([2, 1], 0)


def test_a_full_disk_is_said_and_loses_nothing_that_was_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add(1)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)  # after the bytes were written, so that what is there may be whole
    for _ in range(3):
        with pytest.raises(OSError, match="No space left"):
            store.add(2)
    monkeypatch.undo()
    store.add(3)
    labels, damaged = store.read()
    assert (labels[0], labels[-1], damaged) == (3, 1, 0)
    store.start()
    assert store.read()[0][0] == 3


def test_forgetting_takes_the_key_first(store: Store) -> None:
    store.add(1)
    store.store.erase()
    assert not list(store.folder.iterdir())
    assert store.store.counts() == {}
    store.add(2)
    assert store.read() == ([2], 0)


def test_a_kill_in_the_middle_of_adding_leaves_every_record_that_was_acknowledged(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from edge_agent.samplestore import SampleStore
from tests.fakes.faulty_disk import KINDS, FaultyDisk, Kind, PowerLoss
store = SampleStore(Path(sys.argv[1]) / "samples", quota_bytes=10**7, keep_s=1e9, clock=lambda: 0.0, event=print)
for label in range(100_000):
    store.add("thirds", np.arange(4, dtype=np.float32)[None] + 10 * label, np.array([label]))
    print(label, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    acknowledged = -1
    for line in process.stdout:
        acknowledged = int(line)
        if acknowledged == 50:
            process.kill()
    process.wait()
    process.stdout.close()
    labels, damaged = Store(tmp_path).read(limit=10**6)
    assert damaged == 0
    assert labels[::-1] == list(range(len(labels)))
    assert len(labels) - 1 >= acknowledged >= 50


def test_samples_of_files_and_of_the_store_are_used_together_in_proportion() -> None:
    def some(count: int, value: int) -> samples.Samples:
        return samples.Samples(np.full((count, 4), value), np.full(count, value, np.int64))

    both: Any = samples.join(some(30, 1), some(10, 2), 20)
    assert np.bincount(both.y).tolist() == [0, 15, 5]
    assert len(samples.join(some(30, 1), some(10, 2), 100).x) == 40
    assert len(samples.join(None, some(10, 2), 5).x) == 5
    with pytest.raises(SampleError, match="no labelled samples"):
        samples.join(None, None, 5)
    with pytest.raises(SampleError, match="cannot be used together"):
        samples.join(samples.Samples(np.zeros((1, 3)), np.zeros(1, np.int64)), some(1, 1), 5)


QUOTA = 3700  # a segment holds one record of these, the ring sixteen


def _use(store: Store, first: int, kept: list[int]) -> None:
    """Add three records; `kept` hears which of them were acknowledged."""
    for label in range(first, first + 3):
        with suppress(OSError):
            store.add(label)
            kept.append(label)


def _points(folder: Path, image: Path, first: int, fail_at: int, kind: Kind) -> tuple[FaultyDisk, Store, list[int]]:
    """Use the store on a disk that fails at a point; the store as the next start finds it."""
    disk, store = FaultyDisk(folder, image, fail_at=fail_at, kind=kind), Store(folder, quota_bytes=QUOTA)
    kept: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "os", disk)
        try:
            _use(store, first, kept)
        except PowerLoss:
            return disk, Store(image, quota_bytes=QUOTA), kept
    store.start()
    return disk, store, kept


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("before", [0, 15])
def test_a_disk_that_fails_or_a_plug_that_is_pulled_at_any_point_loses_nothing_that_was_kept(
    tmp_path: Path, kind: Kind, before: int
) -> None:
    """From an empty store, and from a full one, whose ring turns."""
    full = Store(tmp_path / "full", quota_bytes=QUOTA)
    full.folder.parent.mkdir()
    for label in range(before):
        full.add(label)
    disk, store, _ = _points(shutil.copytree(tmp_path / "full", tmp_path / "0"), tmp_path / "none", before, 0, kind)
    assert store.read()[0][:3] == [before + 2, before + 1, before]
    assert len(store.read()[0]) == min(before + 3, 16)
    assert disk.points > 30
    for point in range(1, disk.points + 1):
        folder = shutil.copytree(tmp_path / "full", tmp_path / f"{point}")
        _, store, kept = _points(folder, tmp_path / f"{point}-image", before, point, kind)
        counted = store.store.counts()
        labels, damaged = store.read()
        assert damaged == 0, disk.names[point - 1]
        assert labels == sorted(labels, reverse=True)
        assert {*range(before), *kept} - {0, 1, 2} <= {*labels, 0, 1, 2}, disk.names[point - 1]
        assert sum(counted.values()) == len(labels)
        store.add(77)
        assert store.read()[0][0] == 77
