"""What a person sees while the demonstration runs: a line for each station, a bar for what takes long."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

STATIONS = 9
LINE_S = 2.0  # between two lines of progress where there is no terminal


class Screen:
    """Prints stations and facts; remembers how long each station took, in seconds."""

    def __init__(self) -> None:
        """Print to standard output; without a terminal there are plain lines and no bars."""
        self.console = Console(highlight=False)
        self.seconds: dict[str, float] = {}
        self.current = ""

    @contextmanager
    def station(self, number: int, title: str) -> Iterator[None]:
        """Frame one station of the loop."""
        self.current = title
        self.console.print(f"[bold cyan]\\[{number}/{STATIONS}][/] [bold]{title}[/]")
        begun = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - begun
        self.console.print(f"      [dim]{self.seconds[title]:.1f} s[/]")

    def fact(self, text: str) -> None:
        """Say something that was just seen."""
        self.console.print(f"      {text}", soft_wrap=True)

    @contextmanager
    def bar(self, what: str) -> Iterator["Bar"]:
        """Show progress of something that takes long."""
        columns = (
            SpinnerColumn(),
            TextColumn("    {task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        off = not self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=off) as progress:
            yield Bar(self, progress, what)


class Bar:
    """One progress bar; where there is no terminal, a line for a new note, but not for every one of a flood."""

    def __init__(self, screen: Screen, progress: Progress, what: str) -> None:
        self._screen = screen
        self._progress = progress
        self._what = what
        self._note = ""
        self._said_at = 0.0
        self._task = progress.add_task(what, total=1.0, note="")

    def show(self, fraction: float, note: str) -> None:
        """Show progress in [0, 1] and what is being done."""
        self._progress.update(self._task, completed=fraction, note=note)
        now = time.monotonic()
        if note and note != self._note and not self._screen.console.is_terminal and now - self._said_at >= LINE_S:
            self._screen.fact(f"[dim]{self._what}: {note}[/]")
            self._note, self._said_at = note, now
