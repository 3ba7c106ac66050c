"""The story from the first process to the exit status."""

import contextlib
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast

import msgspec

from coordinator.client import ClientError
from fieldfare.demo import preflight
from fieldfare.demo.errors import StationFailedError
from fieldfare.demo.outcome import Outcome
from fieldfare.demo.processes import Processes
from fieldfare.demo.screen import Screen
from fieldfare.demo.settings import RECOVERED_POINTS, SMALLEST_COHORT, Settings
from fieldfare.demo.stations import Stations

LOG_LINES = 12


def tell(*, devices: int, broker: str, keep: bool, json_file: Path | None, report: Path, seed: int) -> int:
    """Run the demonstration.

    Returns:
        exit status: 0 where every station did its work and the model recovered.
    """
    screen = Screen()
    try:
        preflight.packages()
        preflight.broker(broker)
        preflight.writable(report, json_file)
    except StationFailedError as error:
        _explain(screen, error)
        return 1
    folder = Path(tempfile.mkdtemp(prefix="fieldfare-demo-"))
    kind = cast("Literal['embedded', 'mosquitto']", broker)
    settings = Settings(folder=folder, devices=devices, broker=kind, report=report, seed=seed)
    kept = keep
    outcome = Outcome(
        devices=devices, broker=broker, drifting=settings.drifting, smallest_cohort=SMALLEST_COHORT, seed=seed
    )
    try:
        with _ended_like_ctrl_c(), Processes(folder / "logs") as processes:
            _stations(Stations(settings, screen, processes, outcome))
        screen.current = "Write down what was found"
        outcome.seconds = screen.seconds
        return _finish(screen, settings, outcome, keep=keep, json_file=json_file)
    except (StationFailedError, ClientError, OSError) as error:
        _explain(screen, error)
        screen.console.print(f"What it left lies in {folder}", markup=False, soft_wrap=True)
        kept = True
        return 1
    except KeyboardInterrupt:
        screen.console.print("Interrupted: all that was started has ended.")
        raise
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end the demonstration as Ctrl-C does: with everything that it started."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _stations(stations: Stations) -> None:
    """The loop of the design, one line a station."""
    stations.start_coordinator()
    stations.train()
    stations.compress()
    stations.enrol()
    stations.roll_out()
    stations.watch()
    stations.drift()
    stations.federate()
    stations.prove()


def _finish(screen: Screen, settings: Settings, outcome: Outcome, *, keep: bool, json_file: Path | None) -> int:
    from fieldfare.demo import report, table

    table.show(screen.console, outcome)
    if json_file is not None:
        json_file.write_bytes(msgspec.json.format(msgspec.json.encode(outcome), indent=2) + b"\n")
        screen.console.print(f"JSON:   {json_file.resolve()}", markup=False, soft_wrap=True)
    report.write(settings.report, outcome)
    screen.console.print(f"Report: {settings.report.resolve()}", markup=False, soft_wrap=True)
    if keep:
        screen.console.print(f"Kept:   {settings.folder}", markup=False, soft_wrap=True)
    gained = 100 * (outcome.drifted["2"].accuracy - outcome.drifted["1"].accuracy)
    if gained < RECOVERED_POINTS:
        screen.console.print(
            f"[bold red]No recovery:[/] version 2 gained {gained:.1f} points on the drifted images, "
            f"not the {RECOVERED_POINTS} that are asked"
        )
        return 1
    screen.console.print(f"[bold green]Recovered:[/] version 2 gained {gained:.1f} points on the drifted images.")
    return 0


def _explain(screen: Screen, error: Exception) -> None:
    where = f"failed at: {screen.current}" if screen.current else "cannot start"
    screen.console.print(f"[bold red]The demonstration {where}[/]", soft_wrap=True)
    screen.console.print(str(error), markup=False, soft_wrap=True)
    log = error.log if isinstance(error, StationFailedError) else None
    if log is not None and log.exists():
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        screen.console.print("\n".join([f"The end of {log}:", *(f"  {line}" for line in lines)]), markup=False)
