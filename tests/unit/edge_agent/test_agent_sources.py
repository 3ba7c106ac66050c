"""Sources by themselves: what they read, what they pass over, and where they go on."""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import tensors
from edge_agent.errors import ApiError, ConfigError, SampleError, UnavailableError
from edge_agent.sources import command, folder, http, payload, table
from edge_agent.sources.payload import PayloadOptions
from edge_agent.sources.plugin import Batch, Context, Plugin
from edge_agent.sources.push import Pushes
from tests.fakes.broker_process import eventually

CSV = "a,b,state\n1,2,0\n3,,1\nx,6,2\n7,8,1.0\n9,10\n11,12,2\n"


def play(
    kind: Plugin, position: str = "", *, most: int = 1000, context: Context | None = None, **options: Any
) -> list[Batch]:
    """Up to `most` batches."""
    context = context or Context(position, threading.Event(), Pushes())
    batches = kind.open(kind.read_options("it", options), context)
    got = [batch for _, batch in zip(range(most), batches, strict=False)]
    batches.close()
    return got


def test_the_rows_of_a_csv_are_samples_with_labels_and_what_is_no_number_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(CSV)
    (batch,) = play(table.CSV, path=str(tmp_path / "f.csv"), label="state")
    np.testing.assert_array_equal(batch.x, [[1, 2], [3, np.nan], [7, 8], [11, 12]])
    assert batch.y is not None
    assert batch.y.tolist() == [0, 1, 1, 2]
    assert (batch.passed_over, batch.position) == (2, "0:6")
    assert batch.reason == "row 5 has a cell that is no number, or lacks one"  # and not what stands there
    (batch,) = play(table.CSV, path=str(tmp_path / "f.csv"), columns=["b", "a"], most=1, batch=1)
    np.testing.assert_array_equal(batch.x, [[2, 1]])
    assert batch.y is None


@given(rows=st.integers(1, 20), size=st.integers(1, 7), cut=st.integers(1, 10), passes=st.integers(0, 1))
def test_a_table_goes_on_where_it_was_whatever_the_batch(
    tmp_path_factory: pytest.TempPathFactory, rows: int, size: int, cut: int, passes: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "f.csv"
    path.write_text("a\n" + "".join(f"{row}\n" for row in range(rows)))
    options = {"path": str(path), "loop": bool(passes), "batch": size}
    whole = play(table.CSV, most=40, **options)
    first = play(table.CSV, most=cut, **options)
    rest = play(table.CSV, first[-1].position, most=40 - len(first), **options)
    wanted, got = ([x for batch in part for x in batch.x.ravel()] for part in (whole, first + rest))
    assert got[: len(wanted)] == wanted


@pytest.mark.parametrize("broken", ["missing", "no such column", "empty"])
def test_a_table_that_cannot_be_played_says_why(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "f.csv"
    if broken != "missing":
        path.write_text("a,b\n" if broken == "empty" else CSV)
    options = {"path": str(path), "loop": True, "columns": ["z"] if broken == "no such column" else []}
    with pytest.raises((OSError, ConfigError, SampleError), match=r"No such file|no column z; it has a, b|no rows"):
        play(table.CSV, **options)


def test_a_rate_is_kept(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text("a\n" + "1\n" * 4)
    before = time.monotonic()
    batches = play(table.CSV, path=str(tmp_path / "f.csv"), rate_per_s=20.0)
    assert time.monotonic() - before >= 0.2
    assert sum(len(batch.x) for batch in batches if batch.x is not None) == 4


def test_the_rows_of_a_parquet_file_are_samples_and_it_goes_on_in_the_middle(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {"a": [1.0, 2.0, None, 4.0, 5.0], "b": [1, 2, 3, 4, 5], "state": [0, 1, 2, 0, 1], "name": list("abcde")}
    parquet.write_table(pa.table(columns), tmp_path / "f.parquet")
    options = {"path": str(tmp_path / "f.parquet"), "columns": ["a", "b"], "label": "state", "batch": 2}
    batches = play(table.PARQUET, **options)
    joined = np.concatenate([batch.x for batch in batches if batch.x is not None])
    np.testing.assert_array_equal(joined, [[1, 1], [2, 2], [np.nan, 3], [4, 4], [5, 5]])
    assert [batch.position for batch in batches] == ["0:2", "0:4", "0:5"]
    rest = play(table.PARQUET, "0:3", **options)
    np.testing.assert_array_equal(np.concatenate([batch.x for batch in rest if batch.x is not None]), joined[3:])
    with pytest.raises(ConfigError, match="must hold numbers"):
        play(table.PARQUET, **{**options, "columns": ["name"]})
    (tmp_path / "f.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(SampleError, match=r"f\.parquet"):
        play(table.PARQUET, **options)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'fieldfare\[agent-parquet\]'"):
        play(table.PARQUET, path=str(tmp_path / "f.parquet"))


def test_a_folder_gives_each_file_once_and_passes_over_what_is_none(tmp_path: Path) -> None:
    for name in ("000", "002"):
        (tmp_path / f"{name}.safetensors").write_bytes(tensors.dump({"x": np.ones((2, 3), np.float32)}))
    (tmp_path / "001.safetensors").write_bytes(b"nothing")
    batches = play(folder.FOLDER, path=str(tmp_path), most=3)
    assert [batch.position for batch in batches] == [f"00{i}.safetensors" for i in range(3)]
    assert [batch.passed_over for batch in batches] == [0, 1, 0]
    (batch,) = play(folder.FOLDER, "001.safetensors", path=str(tmp_path), most=1)
    assert batch.position == "002.safetensors"


@given(
    frames=st.lists(st.binary(min_size=1, max_size=9).filter(lambda b: b.strip() and b"\n" not in b)),
    step=st.integers(1, 7),
)
def test_frames_are_found_however_the_bytes_arrive(frames: list[bytes], step: int) -> None:
    for framing in ("lines", "prefixed", "fixed"):
        whole = [frame.ljust(9, b".") if framing == "fixed" else frame for frame in frames]
        stream = b"".join(
            {"lines": frame + b"\n", "prefixed": len(frame).to_bytes(4, "little") + frame, "fixed": frame}[framing]
            for frame in whole
        )
        buffer, got = bytearray(), []
        for start in range(0, len(stream), step):
            buffer += stream[start : start + step]
            got += command.split(buffer, framing, 9)
        assert got == whole
        assert not buffer


def test_a_frame_without_end_is_refused_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SampleError, match="is announced"):
        list(command.split(bytearray(b"\xff\xff\xff\x7f"), "prefixed", 0))
    monkeypatch.setattr(payload, "PAYLOAD_BYTES", 10)
    with pytest.raises(SampleError, match="longer than 10 bytes"):
        list(command.split(bytearray(20), "lines", 0))


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {}, "no JSON samples"),
        (b"{", {}, "no JSON samples"),
        (b"[1, [2]]", {}, "no JSON samples"),
        (b'["a"]', {}, "array of numbers"),
        (b"[]", {}, "array of numbers"),
        (b"[1, NaN]", {}, "no JSON samples"),
        (b'{"x": [1], "z": 1}', {}, "no JSON samples"),
        (b'{"x": [1], "y": 99999999999999999999}', {}, "no JSON samples"),
        (b"[" * 100_000, {}, "no JSON samples"),
        (b"abc", {"format": "raw"}, "3 bytes are no float32"),
        (b"", {"format": "raw", "dtype": "uint8"}, "0 bytes are no uint8"),
    ],
)
def test_a_payload_that_is_none_is_refused(content: bytes, options: dict[str, Any], says: str) -> None:
    with pytest.raises(SampleError, match=says):
        payload.read(content, msgspec.convert(options, PayloadOptions))


@given(content=st.binary(max_size=60), raw=st.booleans())
def test_random_payloads_are_numbers_or_a_sample_error(content: bytes, raw: bool) -> None:
    try:
        x, _ = payload.read(content, PayloadOptions(format="raw" if raw else "json"))
    except SampleError:
        return
    assert x.size


def test_numbers_become_samples_of_the_models_shape() -> None:
    assert payload.fit(np.zeros((4, 4, 1)), (4, 4, 1)).shape == (1, 4, 4, 1)
    assert payload.fit(np.zeros((5, 4, 4, 1)), (4, 4, 1)).shape == (5, 4, 4, 1)
    assert payload.fit(np.zeros(32), (4, 4, 1)).shape == (2, 4, 4, 1)
    assert payload.fit(np.zeros((7, 16)), (16,)).shape == (7, 16)
    assert payload.fit(np.zeros(16), (16,)).shape == (1, 16)
    with pytest.raises(SampleError, match="17 numbers make no samples"):
        payload.fit(np.zeros(17), (4, 4, 1))
    with pytest.raises(SampleError, match="2 samples have labels of shape"):
        payload.fit(np.zeros(32), (4, 4, 1), np.zeros(3, np.int64))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_commands_output_is_read_and_it_and_its_children_end_with_the_source(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen(['sleep', '1000']); open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        'print(\'{"x": [1, 2], "y": 1}\\nnonsense\', flush=True)\ntime.sleep(1000)'
    )
    first, second = play(command.COMMAND, most=2, command=python(code))
    assert first.x is not None
    assert first.y is not None
    assert (first.x.tolist(), first.y.tolist()) == ([1, 2], [1])
    assert (second.passed_over, "no JSON" in second.reason) == (1, True)
    pid = (tmp_path / "pid").read_text()
    assert eventually(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text(), 20)


def test_a_command_that_ends_is_an_error_unless_it_is_to_run_again_and_again() -> None:
    with pytest.raises(UnavailableError, match="ended with status 3"):
        play(command.COMMAND, command=python("raise SystemExit(3)"))
    with pytest.raises(UnavailableError, match="ended with status 0"):
        play(command.COMMAND, command=python("print([1])"))
    again = play(command.COMMAND, most=2, command=python("print([1])"), every_s=0.01)
    assert [batch.x.tolist() for batch in again if batch.x is not None] == [[1], [1]]
    with pytest.raises(UnavailableError, match="/nowhere: cannot be started"):
        play(command.COMMAND, command=["/nowhere"])
    with pytest.raises(ConfigError, match="needs frame_bytes"):
        play(command.COMMAND, command=["true"], framing="fixed")


def test_a_cameras_frames_are_raw_bytes() -> None:
    code = "import sys; sys.stdout.buffer.write(bytes(range(8)))"
    options = {"framing": "fixed", "frame_bytes": 4, "format": "raw", "dtype": "uint8", "every_s": 1.0}
    frames = play(command.COMMAND, most=2, command=python(code), **options)
    assert [frame.x.tolist() for frame in frames if frame.x is not None] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_what_is_pushed_waits_in_a_queue_that_is_bounded() -> None:
    context = Context("", threading.Event(), Pushes())
    with pytest.raises(ApiError, match="no source 'cam' of kind http"):
        context.pushes.offer("cam", b"[1]")
    got: list[Batch] = []

    def pull() -> None:
        got.extend(play(http.HTTP, context=context, most=2, name="cam", queue=2))

    thread = threading.Thread(target=pull)
    thread.start()
    assert eventually(lambda: "cam" in context.pushes._queues, 20)
    with pytest.raises(SampleError):
        context.pushes.offer("cam", b"nonsense")
    context.pushes.offer("cam", b"[1]")
    context.pushes.offer("cam", json.dumps({"x": [2], "y": 0}).encode())
    thread.join(20)
    assert [batch.x.tolist() for batch in got if batch.x is not None] == [[1], [2]]
    with context.pushes.opened("full", 1, PayloadOptions()):
        context.pushes.offer("full", b"[1]")
        with pytest.raises(UnavailableError, match="too many pushes wait already"):
            context.pushes.offer("full", b"[1]")


def test_what_waits_is_bounded_by_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.sources.waiting.WAITING_BYTES", 100)
    pushes = Pushes()
    with pushes.opened("cam", 64, PayloadOptions(format="raw", dtype="uint8")) as waiting:
        pushes.offer("cam", bytes(300))  # a single one may be larger: else it would never come through
        with pytest.raises(UnavailableError, match="too many pushes wait already"):
            pushes.offer("cam", b"1")
        assert waiting.get()[0].size == 300
        for _ in range(2):
            pushes.offer("cam", bytes(50))
        with pytest.raises(UnavailableError, match="too many pushes wait already"):
            pushes.offer("cam", b"1")


def test_an_option_that_is_wrong_is_named() -> None:
    for options, says in (
        ({}, "missing required field `path`"),
        ({"path": "f", "pth": "g"}, "unknown field `pth`"),
        ({"path": "f", "batch": 0}, "batch"),
        ({"path": 3}, "path"),
    ):
        with pytest.raises(ConfigError, match=says):
            table.CSV.read_options("csv", options)
