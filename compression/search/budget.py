"""What an artifact may cost: a budget from text such as `size<=64KiB, p95<=2ms, drop<=0.5pt`."""

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from compression.errors import BudgetError

Quantity = Literal["bytes", "microseconds", "share"]

UNITS: Mapping[Quantity, Mapping[str, float]] = {
    "bytes": {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "KiB": 1024, "MiB": 1024**2},
    "microseconds": {"us": 1, "µs": 1, "ms": 1e3, "s": 1e6},
    "share": {"pt": 0.01, "%": 0.01},
}


@dataclass(frozen=True)
class Measure:
    """What a term may limit.

    Attributes:
        field: of a report.
        certain: field that must hold as well before it counts as kept: the upper end of an interval; empty where the
            measured number is all there is.
        quantity: of the limit.
        words: for people.
        room: limits below this are treated as this large where an excess is compared with its limit.
    """

    field: str
    quantity: Quantity
    words: str
    certain: str = ""
    room: float = 1.0


MEASURES: Mapping[str, Measure] = {
    "size": Measure("zstd_bytes", "bytes", "bytes on the way (Zstandard)"),
    "gzip": Measure("gzip_bytes", "bytes", "bytes on the way (gzip)"),
    "raw": Measure("bytes", "bytes", "bytes on the device"),
    "arena": Measure("arena_bytes", "bytes", "bytes of working memory"),
    "p50": Measure("p50_us", "microseconds", "median latency"),
    "p95": Measure("p95_us", "microseconds", "95th percentile of latency"),
    "drop": Measure("drop", "share", "validation accuracy lost", certain="drop_high", room=0.005),
    "ece": Measure("calibration_change", "share", "calibration error gained", room=0.005),
}
_TERM = re.compile(r"\s*([A-Za-z0-9_]+)\s*(<=|<|=<|>=|>|=)?\s*([^\s]*?)\s*([A-Za-zµ%]*)\s*")


class Term(msgspec.Struct, frozen=True, kw_only=True):
    """One limit.

    Attributes:
        name: of a measure.
        most: bytes, microseconds, or a share from 0 to 1 for accuracy and calibration.
    """

    name: str
    most: float

    @property
    def measure(self) -> Measure:
        """What it limits."""
        return MEASURES[self.name]


class Budget(msgspec.Struct, frozen=True):
    """Limits that hold together."""

    terms: tuple[Term, ...]

    def most(self, name: str) -> float | None:
        """The limit of a measure, None without one."""
        return next((term.most for term in self.terms if term.name == name), None)

    @property
    def names_latency(self) -> bool:
        """Whether it limits a latency."""
        return any(term.measure.quantity == "microseconds" for term in self.terms)


def parse(text: str) -> Budget:
    """A budget from terms with commas between.

    Args:
        text: each term is a measure, `<=`, a number and its unit.

    Raises:
        BudgetError: no term, an unknown measure or unit, no number, or a measure twice; the message holds the term.
    """
    parts = [part for part in text.split(",") if part.strip()]
    if not parts:
        raise BudgetError('the budget is empty; write for example "size<=64KiB, p95<=2ms, drop<=0.5pt"')
    terms = tuple(_term(part.strip()) for part in parts)
    names = [term.name for term in terms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BudgetError(f"budget: {twice!r} is limited twice; keep one of the two")
    return Budget(terms)


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if found is None:
        raise BudgetError(f'budget: {text!r} is no limit; write for example "size<=64KiB"')
    name, sign, number, unit = found.groups()
    if name not in MEASURES:
        near = difflib.get_close_matches(name, MEASURES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MEASURES)}"
        raise BudgetError(f"budget: {text!r}: nothing is called {name!r}; {hint}")
    if sign != "<=":
        raise BudgetError(f"budget: {text!r}: put <= between {name!r} and its limit")
    units = UNITS[MEASURES[name].quantity]
    if unit not in units:
        raise BudgetError(f"budget: {text!r}: {name!r} needs one of the units {', '.join(units)}")
    gained = MEASURES[name].quantity == "share"  # below zero asks for what is better than float
    return Term(name=name, most=_number(number, text, least=-math.inf if gained else 0.0) * units[unit])


def _number(text: str, term: str, *, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise BudgetError(f"budget: {term!r}: {text!r} is no number") from None
    if not math.isfinite(value) or value < least:
        raise BudgetError(f"budget: {term!r}: the limit must be finite, and of bytes and time zero or more")
    return value


def quantity(value: float, kind: Quantity) -> str:
    """A number for people, in the unit that suits it; `parse` reads it again to within a thousandth."""
    if kind == "share":
        return f"{100 * value:.4g}pt"
    ladder = [("MiB", 1024.0**2), ("KiB", 1024.0), ("B", 1.0)] if kind == "bytes" else [("ms", 1e3), ("us", 1.0)]
    unit, size = next((step for step in ladder if abs(value) >= step[1]), ladder[-1])
    return f"{value / size:.5g}{unit}"


def text(budget: Budget) -> str:
    """A budget as it is written."""
    return ", ".join(f"{term.name}<={quantity(term.most, term.measure.quantity)}" for term in budget.terms)


@dataclass(frozen=True)
class Excess:
    """How far a report is above a limit.

    Attributes:
        term: the limit.
        value: what was measured, or the end of its interval.
        only_interval: the measured number is within, the end of its interval is not.
    """

    term: Term
    value: float
    only_interval: bool

    @property
    def relative(self) -> float:
        """Excess as a part of the limit; infinite where nothing was measured (NaN, or no such number)."""
        over = (self.value - self.term.most) / max(self.term.most, self.term.measure.room)
        return math.inf if math.isnan(over) else over

    def words(self) -> str:
        """For people."""
        kind, words = self.term.measure.quantity, self.term.measure.words
        if not math.isfinite(self.value):
            return f"{words} was not measured"
        over, most = quantity(self.value - self.term.most, kind), quantity(self.term.most, kind)
        if self.only_interval:
            return f"the interval of {words} reaches {quantity(self.value, kind)}, {over} above {most}"
        return f"{words} is {quantity(self.value, kind)}, {over} above {most}"


def excesses(budget: Budget, figures: Mapping[str, float | None], *, certain: bool = True) -> list[Excess]:
    """The limits that are not kept; NaN and missing numbers keep none.

    Args:
        budget: to hold.
        figures: of a report, by field.
        certain: whether intervals must lie within, too.
    """
    found = []
    for term in budget.terms:
        value, high = (_figure(figures, name) for name in (term.measure.field, term.measure.certain))
        if not value <= term.most * (1 + 1e-12):
            found.append(Excess(term, value, only_interval=False))
        elif certain and term.measure.certain and not high <= term.most * (1 + 1e-12):
            found.append(Excess(term, high, only_interval=True))
    return found


def distance(budget: Budget, figures: Mapping[str, float | None], *, certain: bool = True) -> float:
    """Sum of the relative excesses: 0 exactly where the budget is met."""
    return sum(excess.relative for excess in excesses(budget, figures, certain=certain))


def _figure(figures: Mapping[str, float | None], name: str) -> float:
    value = figures.get(name)
    return math.nan if value is None else float(value)
