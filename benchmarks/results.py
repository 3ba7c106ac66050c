"""How every benchmark reports: one table, the same as JSON, exit status 0 only where every goal holds."""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measured thing. `peer` is None where nobody else does it; `goal` is the most that `ours` may be."""

    what: str
    unit: str
    ours: float
    peer: float | None = None
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's."""
        return None if self.peer is None else self.ours / self.peer

    @property
    def holds(self) -> bool:
        """Whether the goal is met; true where there is none."""
        return self.goal is None or self.ours <= self.goal


def arguments(description: str | None, *, groups: Iterable[str] = ()) -> argparse.Namespace:
    """The options that every benchmark has; `--only` where there are groups to choose from."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a first look, with less work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE as JSON")
    if groups:
        parser.add_argument("--only", action="append", choices=sorted(groups), metavar="NAME", help="one group of rows")
    return parser.parse_args()


def show(rows: Sequence[Row], json_file: Path | None) -> int:
    """Print the table; returns the exit status."""
    cells = [("what", "unit", "ours", "peer", "ratio", "goal", "holds")]
    for row in rows:
        numbers = [_number(n) for n in (row.ours, row.peer, row.ratio)]
        goal = "" if row.goal is None else f"<= {_number(row.goal)}"
        cells.append((row.what, row.unit, *numbers, goal, "yes" if row.holds else "NO"))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    if json_file is not None:
        table = [asdict(row) | {"ratio": row.ratio, "holds": row.holds} for row in rows]
        json_file.write_text(json.dumps(table, indent=2) + "\n")
    return 0 if all(row.holds for row in rows) else 1


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
