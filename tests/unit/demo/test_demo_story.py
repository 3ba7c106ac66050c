"""The story around the stations: exit status, what is said when one fails, and what is left behind."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from fieldfare.demo import story
from fieldfare.demo.errors import StationFailedError
from fieldfare.demo.outcome import Outcome
from fieldfare.demo.stations import Stations

RECORDED = msgspec.json.decode(Path(__file__).with_name("outcome.json").read_bytes(), type=Outcome)


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """The story with `stations` in place of the real ones; its folder is made in tmp_path/temporary."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(story.tempfile, "mkdtemp", lambda prefix: str(made(temporary / prefix)))

    def go(
        stations: Callable[[Stations], None],
        *,
        broker: str = "embedded",
        keep: bool = False,
        json_file: Path | None = None,
    ) -> int:
        monkeypatch.setattr(story, "_stations", stations)
        report = tmp_path / "report.html"
        return story.tell(devices=5, broker=broker, keep=keep, json_file=json_file, report=report, seed=0)

    return go


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "temporary").iterdir()]


def recorded(stations: Stations, **changes: object) -> None:
    for name, value in (msgspec.structs.asdict(RECORDED) | changes).items():
        setattr(stations._outcome, name, value)


def test_a_recovery_ends_with_status_0_a_report_and_nothing_else(tell, tmp_path, capsys):
    json_file = tmp_path / "result.json"
    assert tell(recorded, json_file=json_file) == 0
    assert "Recovered: version 2 gained" in capsys.readouterr().out
    assert msgspec.json.decode(json_file.read_bytes(), type=Outcome).drifted == RECORDED.drifted
    assert (tmp_path / "report.html").exists()
    assert left(tmp_path) == []


def test_kept_where_that_is_asked_for(tell, tmp_path, capsys):
    assert tell(recorded, keep=True) == 0
    assert "Kept:" in capsys.readouterr().out
    assert left(tmp_path) == ["fieldfare-demo-"]


def test_no_recovery_is_a_failure_with_a_report(tell, tmp_path, capsys):
    unchanged = RECORDED.drifted | {"2": RECORDED.drifted["1"]}
    assert tell(lambda stations: recorded(stations, drifted=unchanged)) == 1
    assert "No recovery: version 2 gained 0.0 points" in capsys.readouterr().out
    assert (tmp_path / "report.html").exists()


def test_a_station_that_fails_is_named_with_the_end_of_its_log_and_its_folder_stays(tell, tmp_path, capsys):
    def fail(stations: Stations) -> None:
        log = stations._settings.folder / "broker.log"
        log.write_text("".join(f"line {number}\n" for number in range(100)))
        with stations._screen.station(1, "Start a coordinator"):
            raise StationFailedError("the process 'broker' ended with status 78", log=log)

    assert tell(fail) == 1
    said = capsys.readouterr().out
    assert "failed at: Start a coordinator" in said
    assert "ended with status 78" in said
    assert "line 99" in said
    assert "line 87" not in said
    assert "What it left lies in" in said
    assert left(tmp_path) == ["fieldfare-demo-"]


@pytest.fixture
def keyboard():
    """Ctrl-C as a terminal has it: a shell starts background jobs with SIGINT ignored, and they inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("keyboard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_ends_every_process_and_leaves_no_folder(tell, tmp_path, capsys, number):
    pids = []

    def interrupted(stations: Stations) -> None:
        stations._processes.start("one", "http.server", "--bind", "127.0.0.1", "0")
        pids.append(stations._processes._running["one"].pid)
        os.kill(os.getpid(), number)
        signal.pause()

    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(KeyboardInterrupt):
        tell(interrupted)
    assert "all that was started has ended" in capsys.readouterr().out
    assert not Path(f"/proc/{pids[0]}").exists()
    assert left(tmp_path) == []
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_report_that_cannot_be_written_is_said_before_anything_starts(tell, tmp_path, capsys):
    started = []
    assert tell(started.append, json_file=tmp_path / "missing" / "result.json") == 1
    said = capsys.readouterr().out
    assert "cannot start" in said
    assert "cannot be written" in said
    assert (started, left(tmp_path)) == ([], [])


def test_a_missing_package_is_said_before_anything_starts(tell, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(story.preflight.importlib.util, "find_spec", lambda name: name != "tf_keras" or None)
    assert tell(recorded) == 1
    assert "not installed: tf_keras; install them with: pip install 'fieldfare[all]'" in capsys.readouterr().out
    assert left(tmp_path) == []


def test_a_missing_broker_is_said_before_anything_starts(tell, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(story.preflight.shutil, "which", lambda name, path: None)
    assert tell(recorded, broker="mosquitto") == 1
    said = capsys.readouterr().out
    assert "mosquitto is not installed" in said
    assert "--broker embedded" in said
    assert left(tmp_path) == []


def test_the_command_refuses_what_it_cannot_do(monkeypatch, capsys):
    from fieldfare import cli

    for option, value in (("--devices", "3"), ("--devices", "9"), ("--broker", "magic")):
        monkeypatch.setattr(sys, "argv", ["fieldfare", "demo", option, value])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert option in capsys.readouterr().err
