"""What a search gives: trials, the Pareto front, what was chosen, or what is nearest and by how much it misses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from compression.measure import Report
from compression.recipe import Recipe
from compression.report.content import Search
from compression.search import budget as budgets
from compression.search import pareto, space
from compression.search.budget import Budget
from compression.search.sensitivity import LayerLoss
from compression.stage import Record

State = Literal["complete", "stopped", "failed"]


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """A trial that ended.

    Attributes:
        number: in the order of the search, from 0.
        recipe: what was tried; `words` is that for people.
        why: it was tried: the name of a technique or ready recipe, `drawn`, or `longer` for more epochs of another.
        family: the same for recipes that differ in epochs alone.
        rung: 0 is the shortest training.
        state: measured, stopped as hopeless, or failed; `reason` says why it was not measured.
        seconds: it took.
        report: validation figures of its artifact, `sha256` the artifact's digest; None and empty unless measured.
        records: of its stages.
    """

    number: int
    recipe: Recipe
    words: str
    why: str
    family: str
    rung: int
    state: State
    seconds: float
    reason: str = ""
    report: Report | None = None
    sha256: str = ""
    records: tuple[Record, ...] = ()

    @property
    def figures(self) -> dict[str, Any]:
        """Of the report, by field; empty without one."""
        return {} if self.report is None else msgspec.structs.asdict(self.report)


@dataclass(frozen=True)
class Found:
    """A member of the front, with its test figures."""

    recipe: Recipe
    content: bytes
    report: Report
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        front: artifacts that no other is as good as in bytes on the way, accuracy and latency; smallest first.
        trials: all of them, in order.
        sensitivity: of each layer.
        chosen: the smallest that meets the whole budget, intervals included; None where none does.
        shortfall: then: which is nearest, and by how much it misses.
        seconds: used in all, killed attempts included.
    """

    front: list[Found]
    trials: list[Tried]
    sensitivity: list[LayerLoss]
    chosen: Found | None
    shortfall: str
    seconds: float

    @property
    def kept(self) -> list[Found]:
        """The front, and what is chosen where that is not on it, because of a limit on something else."""
        return self.front if self.chosen is None or self.chosen in self.front else [*self.front, self.chosen]


def front(trials: Sequence[Tried]) -> list[Tried]:
    """The measured trials that none dominates in bytes on the way, drop and latency, smallest first.

    Latencies that differ by less than the noise of measuring are the same, so that bytes and accuracy decide.
    """
    measured = [(tried, tried.report) for tried in trials if tried.report is not None]
    points = [(r.zstd_bytes, r.drop, pareto.latency_level(r.p95_us)) for _, r in measured]
    chosen = [measured[index][0] for index in pareto.front(points)]
    return sorted(chosen, key=lambda tried: (size(tried), tried.number))


def size(tried: Tried) -> int:
    """Bytes on the way of a measured trial."""
    assert tried.report is not None  # noqa: S101 callers keep to measured ones
    return tried.report.zstd_bytes


def choose(trials: Sequence[Tried], budget: Budget) -> Tried | None:
    """The smallest measured trial that meets the whole budget and its intervals; ties by number."""
    meets = [tried for tried in trials if tried.report and not budgets.excesses(budget, tried.figures)]
    return min(meets, key=lambda tried: (size(tried), tried.number), default=None)


def shortfall(trials: Sequence[Tried], budget: Budget) -> str:
    """Which measured trial is nearest to the budget, and by how much it misses; empty where one meets it."""
    measured = [tried for tried in trials if tried.report is not None]
    if choose(measured, budget) is not None:
        return ""
    said = f"nothing met the budget {budgets.text(budget)}"
    if not measured:
        return f"{said}: no trial came as far as being measured; give it more time"
    nearest = min(measured, key=lambda tried: (budgets.distance(budget, tried.figures), size(tried), tried.number))
    missed = "; ".join(excess.words() for excess in budgets.excesses(budget, nearest.figures))
    return f"{said}; nearest is {nearest.recipe.name} ({nearest.words}): {missed}"


def best_words(trials: Sequence[Tried], budget: Budget) -> str:
    """The best so far in one line for people; empty before anything was measured."""
    best = choose(trials, budget)
    if best is None:
        measured = [tried for tried in trials if tried.report is not None]
        if not measured:
            return ""
        best = min(measured, key=lambda tried: (budgets.distance(budget, tried.figures), size(tried)))
    assert best.report is not None  # noqa: S101 see above
    said = f"{budgets.quantity(best.report.zstd_bytes, 'bytes')}, drop {budgets.quantity(best.report.drop, 'share')}"
    return f"{said}: {space.words(best.recipe)}"


def for_report(found: Outcome, budget: Budget) -> Search:
    """What a report tells of a search."""
    return Search(
        budget=budgets.text(budget),
        trials=[_told(tried) for tried in found.trials],
        front=[each.recipe.name for each in found.front],
        sensitivity=[
            {"layer": loss.layer, "technique": loss.words, "drop": loss.drop, "divergence": loss.divergence}
            for loss in found.sensitivity
        ],
    )


def _told(tried: Tried) -> dict[str, Any]:
    figures = {name: tried.figures.get(name) for name in ("zstd_bytes", "validation_accuracy", "drop", "p95_us")}
    told = {"name": tried.recipe.name, "state": tried.state, "why": tried.reason, "recipe": tried.words, **figures}
    return told | {"rung": tried.rung, "seconds": tried.seconds}
