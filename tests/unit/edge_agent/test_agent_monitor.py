"""Sample files become counts: each once, in windows of the right size, also across a crash."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import profile, tensors
from contract.bundle import unpack
from contract.messages import ProfileWindow
from edge_agent.monitor import Monitor
from edge_agent.runtime_backend import RuntimeOptions
from edge_agent.serving import Model
from tests.fakes import agent_bundles, agent_models
from tests.fakes.agent_parts import CONFIG, Parts


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    _serve(made)
    yield made
    made.state.close()


def _serve(parts: Parts) -> None:
    bundle = agent_bundles.make()
    ref = agent_bundles.ref(bundle)
    parts.serving.swap(ref.model, Model(ref, unpack(bundle), RuntimeOptions()))


def _monitor(parts: Parts) -> Monitor:
    source = parts.folder.source(CONFIG)
    source.mkdir(exist_ok=True)
    return Monitor(CONFIG, source=source, state=parts.state, serving=parts.serving, clock=lambda: parts.now)


def _feed(parts: Parts, name: str, **arrays: np.ndarray) -> None:
    source = parts.folder.source(CONFIG)
    source.mkdir(exist_ok=True)
    (source / f"{name}.safetensors").write_bytes(tensors.dump(arrays))


def _run(monitor: Monitor, parts: Parts) -> None:
    while monitor.tick():
        pass
    parts.now += CONFIG.window_idle_s
    monitor.tick()


def _windows(parts: Parts) -> list[ProfileWindow]:
    reports = [parts.state.read_report(seq) for seq in parts.state.pending(1000)]
    return [report.body for report in reports if report and isinstance(report.body, ProfileWindow)]


def test_windows_close_when_full_and_when_the_source_is_quiet(parts: Parts) -> None:
    monitor = _monitor(parts)
    x, y = agent_models.samples(120, seed=0)
    _feed(parts, "000", x=x, y=y)
    assert monitor.tick()
    assert [window.counts.samples for window in _windows(parts)] == [50, 50]
    assert not monitor.tick()
    assert len(_windows(parts)) == 2
    parts.now += CONFIG.window_idle_s
    monitor.tick()
    assert [window.counts.samples for window in _windows(parts)] == [50, 50, 20]
    monitor.tick()
    assert len(_windows(parts)) == 3
    assert (parts.state.get("inferences", int, 0), parts.serving.inferences, monitor.labelled()) == (120, 120, 120)


def test_a_file_whose_output_is_not_finite_is_passed_over_and_the_next_one_counts(parts: Parts) -> None:
    monitor = _monitor(parts)
    _feed(parts, "000", x=agent_models.samples(3, seed=1)[0])
    _feed(parts, "001", x=agent_models.samples(50, seed=0)[0])
    model = parts.serving.get("thirds")
    assert model is not None
    model._runtime.logits = lambda values, real=model._runtime.logits: (  # type: ignore[method-assign]
        np.full((len(values), agent_models.CLASSES), np.nan, np.float32) if len(values) == 3 else real(values)
    )
    _run(monitor, parts)
    assert [window.counts.samples for window in _windows(parts)] == [50]
    event = parts.state.last_event("sample")
    assert event is not None
    assert "not finite" in event.text


def test_a_large_file_is_inferred_in_parts_that_fit_into_memory(parts: Parts) -> None:
    monitor = _monitor(parts)
    sizes: list[int] = []
    model = parts.serving.get("thirds")
    assert model is not None
    model._runtime.logits = lambda values, real=model._runtime.logits: (  # type: ignore[method-assign]
        sizes.append(len(values)) or real(values)
    )
    x, _ = agent_models.samples(1000, seed=0)
    _feed(parts, "000", x=x)
    _run(monitor, parts)
    assert sum(window.counts.samples for window in _windows(parts)) == 1000
    assert sum(sizes) == 1000
    assert max(sizes) <= 256


def test_files_that_are_gone_are_forgotten_but_not_when_the_whole_folder_is(parts: Parts, tmp_path: Path) -> None:
    for number in range(3000):
        parts.state.file_done(f"{number:05d}.safetensors", samples=1, labelled=1, at=0.0)
    monitor = _monitor(parts)
    monitor.tick()  # an empty folder may be a disk that is not mounted
    assert len(parts.state.files_done()) == 3000
    _feed(parts, "02999", x=agent_models.samples(5, seed=0)[0])
    _feed(parts, "03000", x=agent_models.samples(5, seed=0)[0])
    _run(monitor, parts)
    assert list(parts.state.files_done()) == ["02999.safetensors", "03000.safetensors"]
    assert sum(window.counts.samples for window in _windows(parts)) == 5


def test_a_source_that_cannot_be_listed_has_no_labelled_samples_to_speak_of(parts: Parts) -> None:
    monitor = _monitor(parts)
    source = parts.folder.source(CONFIG)
    source.rmdir()
    source.write_text("not a folder")
    assert monitor.labelled() == 0
    with pytest.raises(NotADirectoryError):
        monitor.tick()


def test_a_window_closes_though_the_clock_was_set_back_a_year(parts: Parts) -> None:
    monitor = _monitor(parts)
    _feed(parts, "000", x=agent_models.samples(5, seed=0)[0])
    assert monitor.tick()
    parts.now -= 365 * 86400.0
    monitor.tick()
    assert [window.counts.samples for window in _windows(parts)] == [5]


@pytest.mark.parametrize("step", [0.25, -0.25])  # seconds from one look at the clock to the next
def test_no_window_ends_before_it_began_whatever_the_clock_does(parts: Parts, step: float) -> None:
    source = parts.folder.source(CONFIG)
    now = iter(1000.0 + step * look for look in range(10_000))
    monitor = Monitor(CONFIG, source=source, state=parts.state, serving=parts.serving, clock=lambda: next(now))
    x, _ = agent_models.samples(120, seed=0)
    _feed(parts, "000", x=x)
    _feed(parts, "001", x=x)
    while monitor.tick():
        pass

    assert len(_windows(parts)) == 4
    assert all(window.started_at <= window.ended_at for window in _windows(parts))


@given(sizes=st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_however_samples_are_split_into_files_their_counts_add_up_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    parts = Parts(tmp_path_factory.mktemp("agent"))
    _serve(parts)
    model = parts.serving.get("thirds")
    assert model is not None
    x, _ = agent_models.samples(sum(sizes), seed=1)
    starts = np.cumsum([0, *sizes])
    for index, (start, size) in enumerate(zip(starts, sizes, strict=False)):
        _feed(parts, f"{index:03d}", x=x[start : start + size])
    _run(_monitor(parts), parts)
    total = profile.zero(model.profile)
    for window in _windows(parts):
        assert 0 < window.counts.samples <= CONFIG.window_samples
        total = profile.add(total, window.counts)
    inference = model.infer(x) if len(x) else None
    expected = model.count(inference, slice(None)) if inference else profile.zero(model.profile)
    assert total == expected
    parts.state.close()


def test_a_file_is_counted_once_also_by_the_next_start(parts: Parts) -> None:
    _feed(parts, "000", x=agent_models.samples(10, seed=0)[0])
    assert _monitor(parts).tick()
    assert not _monitor(parts).tick()


def test_a_crash_in_the_middle_of_a_file_undoes_the_whole_file(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monitor = _monitor(parts)
    _feed(parts, "000", x=agent_models.samples(60, seed=0)[0])

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(parts.state, "file_done", crash)
        with pytest.raises(KeyboardInterrupt):
            monitor.tick()
    assert (_windows(parts), parts.state.windows()) == ([], [])
    _run(_monitor(parts), parts)
    assert sum(window.counts.samples for window in _windows(parts)) == 60


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((2, 9, 9, 1), np.uint8)},
        {"z": np.zeros(3, np.float32)},
        {"x": np.full((1, 4, 4, 1), np.nan, np.float32)},
        {"x": np.zeros((2, 4, 4, 1), np.uint8), "y": np.zeros(3, np.int64)},
        {"x": np.zeros((2, 4, 4, 1), np.uint8), "y": np.zeros(2, np.float32)},
    ],
)
def test_a_file_that_does_not_fit_is_passed_over_once_and_said(parts: Parts, arrays: dict[str, np.ndarray]) -> None:
    monitor = _monitor(parts)
    _feed(parts, "000", **arrays)
    _feed(parts, "001", x=agent_models.samples(5, seed=0)[0])
    _run(monitor, parts)
    assert sum(window.counts.samples for window in _windows(parts)) == 5
    event = parts.state.last_event("sample")
    assert event is not None
    assert event.text.startswith("000.safetensors: ")


def test_a_file_that_is_no_tensors_is_passed_over(parts: Parts) -> None:
    _feed(parts, "001", x=agent_models.samples(5, seed=0)[0])
    (parts.folder.source(CONFIG) / "000.safetensors").write_bytes(b"\xff" * 100)
    (parts.folder.source(CONFIG) / ".half.safetensors").write_bytes(b"")
    _run(_monitor(parts), parts)
    assert sum(window.counts.samples for window in _windows(parts)) == 5


def test_without_a_bundle_files_wait(parts: Parts) -> None:
    parts.serving.swap("thirds", None)
    _feed(parts, "000", x=agent_models.samples(5, seed=0)[0])
    monitor = _monitor(parts)
    assert not monitor.tick()
    _serve(parts)
    assert monitor.tick()


def test_where_nobody_confirms_for_long_windows_grow_instead_of_the_outbox(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.state, "has_room_for_windows", lambda: parts.state.pending_count() < 1)
    monitor = _monitor(parts)
    for index in range(3):
        _feed(parts, f"{index:03d}", x=agent_models.samples(60, seed=index)[0])
    _run(monitor, parts)
    assert [window.counts.samples for window in _windows(parts)] == [50]
    window = parts.state.window("thirds")
    assert window is not None
    assert window.counts.samples == 130
    parts.state.forget("o", parts.state.pending(10))
    monitor.tick()
    assert [window.counts.samples for window in _windows(parts)] == [130]


def test_a_file_that_the_agent_crashes_with_again_and_again_is_passed_over(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    _feed(parts, "000", x=agent_models.samples(5, seed=0)[0])
    _feed(parts, "001", x=agent_models.samples(7, seed=0)[0])

    def crash(*_: object) -> None:
        raise KeyboardInterrupt  # as far as this process is concerned

    for _ in range(4):  # the first is not noted: nobody knew
        with monkeypatch.context() as broken:
            broken.setattr(Model, "infer", crash)
            with pytest.raises(KeyboardInterrupt):
                _monitor(parts).tick()
    monitor = _monitor(parts)
    _run(monitor, parts)
    assert [window.counts.samples for window in _windows(parts)] == [7]
    event = parts.state.last_event("sample")
    assert event is not None
    assert "000.safetensors: the agent crashed 3 times" in event.text


def test_after_a_run_that_ended_well_no_file_is_under_suspicion(parts: Parts) -> None:
    for index in range(5):
        _feed(parts, f"{index:03d}", x=agent_models.samples(5, seed=0)[0])
        monitor = _monitor(parts)
        assert monitor.tick()
        monitor.close()
        assert parts.state._rows("select 1 from meta where key = 'tried'") == []


def test_a_window_closes_before_the_bundle_changes(parts: Parts) -> None:
    for version in (1, 2):
        bundle = agent_bundles.make(version=version)
        parts.sign(bundle)
        parts.want(version, bundle)
        _feed(parts, f"{version}", x=agent_models.samples(10 * version, seed=version)[0])
        assert _monitor(parts).tick()
    (first,) = _windows(parts)
    assert first.counts.samples == 10
    window, model = parts.state.window("thirds"), parts.serving.get("thirds")
    assert window is not None
    assert model is not None
    assert window.counts.samples == 20
    assert window.bundle_sha256 == model.ref.sha256 != first.bundle_sha256


def test_the_source_waits_until_it_is_said_which_of_several_models_it_feeds(parts: Parts) -> None:
    other = agent_bundles.make(model="fourths")
    ref = agent_bundles.ref(other)
    parts.serving.swap(ref.model, Model(ref, unpack(other), RuntimeOptions()))
    _feed(parts, "000", x=agent_models.samples(5, seed=0)[0])
    assert not _monitor(parts).tick()
    config = msgspec.structs.replace(CONFIG, source_model="fourths")
    source = parts.folder.source(CONFIG)
    monitor = Monitor(config, source=source, state=parts.state, serving=parts.serving, clock=lambda: parts.now)
    _run(monitor, parts)
    assert [window.bundle_sha256 for window in _windows(parts)] == [ref.sha256]


def _ask(parts: Parts, monitor: Monitor, x: np.ndarray) -> None:
    """As the API and the sources do: infer and count, then say so."""
    with parts.serving.use("thirds") as model:
        for sample in x:
            model.step(sample)
            monitor.record(model, 1)


def test_what_models_counted_themselves_is_in_a_window_within_a_second_or_a_windows_worth(parts: Parts) -> None:
    monitor, x = _monitor(parts), agent_models.samples(70, seed=1)[0]
    _ask(parts, monitor, x[:50])
    assert [window.counts.samples for window in _windows(parts)] == [50]
    _ask(parts, monitor, x[50:])
    assert parts.state.window("thirds") is None
    parts.now += 1.0
    monitor.tick()
    window, model = parts.state.window("thirds"), parts.serving.get("thirds")
    assert window is not None
    assert model is not None
    whole = profile.add(_windows(parts)[0].counts, window.counts)
    assert whole == model.count(model.infer(x), slice(None))
    assert parts.state.get("inferences", int, 0) == parts.serving.inferences == 70


def test_a_swap_leaves_what_the_old_bundle_counted_to_the_old_bundle(parts: Parts) -> None:
    monitor, x = _monitor(parts), agent_models.samples(30, seed=1)[0]
    _ask(parts, monitor, x[:10])
    other = agent_bundles.make(version=2)
    ref = agent_bundles.ref(other)
    parts.serving.swap("thirds", Model(ref, unpack(other), RuntimeOptions()))
    _ask(parts, monitor, x[10:])
    monitor.flush()
    (closed,), window = _windows(parts), parts.state.window("thirds")
    assert window is not None
    assert (closed.counts.samples, window.counts.samples) == (10, 20)
    assert window.bundle_sha256 == ref.sha256 != closed.bundle_sha256


def test_where_the_disk_takes_nothing_counts_wait_and_are_not_lost_or_counted_twice(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor, x = _monitor(parts), agent_models.samples(200, seed=1)[0]

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(parts.state, "set_window", full)
        _ask(parts, monitor, x[:120])
        assert not _windows(parts)
        with pytest.raises(sqlite3.OperationalError):
            monitor.flush()
        assert len(monitor._uncounted) == 1  # one set of counts, however long it lasts
    _ask(parts, monitor, x[120:])
    monitor.flush()
    assert sum(window.counts.samples for window in _windows(parts)) == 200
    assert parts.state.get("inferences", int, 0) == parts.serving.inferences == 200


def test_counts_are_taken_while_another_thread_infers(parts: Parts) -> None:
    monitor, x = _monitor(parts), agent_models.samples(2000, seed=1)[0]
    app = threading.Thread(target=_ask, args=(parts, monitor, x))
    app.start()
    while app.is_alive():
        monitor.flush()
    app.join()
    monitor.flush()
    window = parts.state.window("thirds")
    rest = window.counts.samples if window is not None else 0
    assert sum(window.counts.samples for window in _windows(parts)) + rest == 2000
