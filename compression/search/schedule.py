"""What is tried next: techniques alone and ready recipes first, then longer training of the promising, or a draw."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from compression import recipe
from compression.recipe import Recipe
from compression.search import halving, outcome, space
from compression.search.halving import Standing
from compression.search.ledger import Ledger
from compression.search.outcome import Tried
from compression.search.space import Params, Space


@dataclass(frozen=True)
class Plan:
    """What is tried next.

    Attributes:
        why: see `Tried`.
        recipe: with the epochs of its rung.
        rung: 0 is the shortest training.
        params: that it was made from; None where the sampler cannot learn from it.
    """

    why: str
    recipe: Recipe
    rung: int
    params: Params | None = None


@dataclass(frozen=True)
class Schedule:
    """Decides from what was tried; the same trials and time left give the same plan.

    Attributes:
        space: of what is drawn.
        ledger: draws.
        samples: for training, which say how many epochs a rung has.
        allowed: accuracy that may be lost.
        trains: whether stages that train are allowed.
        seed: of every recipe.
    """

    space: Space
    ledger: Ledger
    samples: int
    allowed: float
    trains: bool
    seed: int

    def next(self, tried: Sequence[Tried], *, seconds_left: float) -> Plan | None:
        """The next plan; None where the space holds nothing new, or no time is left for what it holds."""
        name, families = f"search-{len(tried)}", {each.family for each in tried}
        for plan in self._baselines(name):
            if space.family(plan.recipe) not in families:
                return plan
        longer = halving.promotion(self._standings(tried))
        if longer is not None:
            short = next(each.recipe for each in tried if each.family == longer.family)
            plan = Plan("longer", self._timed(short, name, longer.rung + 1), longer.rung + 1)
            if expected_seconds(plan.recipe, tried) <= seconds_left:
                return plan
        params = self.ledger.draw(self.space, families)
        if params is None:
            return None
        drawn = self._made(params, name)
        return Plan("drawn", drawn, 0, params) if expected_seconds(drawn, tried) <= seconds_left else None

    def _baselines(self, name: str) -> Iterator[Plan]:
        yield Plan("float", recipe.from_fields({"name": name, "stages": [{"stage": "float"}]}, "search"), 0)
        for params in space.singles(self.space):
            drawable = params[space.FINISH] in self.space.drawn
            yield Plan("technique", self._made(params, name), 0, params if drawable else None)
        for ready_name in recipe.ready_names():
            ready = recipe.load(ready_name)
            if self.trains or not ready.trains:
                yield Plan(ready_name, self._timed(ready, name, 0), 0)

    def _made(self, params: Params, name: str) -> Recipe:
        return space.make(self.space, params, epochs=halving.epochs(self.samples, 0), name=name, seed=self.seed)

    def _timed(self, which: Recipe, name: str, rung: int) -> Recipe:
        longer = space.retimed(which, halving.epochs(self.samples, rung))
        return msgspec.structs.replace(longer, name=name, seed=self.seed, description="")

    def _standings(self, tried: Sequence[Tried]) -> list[Standing]:
        return [
            Standing(
                each.family,
                each.rung,
                outcome.size(each),
                max(0.0, each.report.drop_high - self.allowed),
                each.recipe.trains,
            )
            for each in tried
            if each.report is not None
        ]


def expected_seconds(which: Recipe, tried: Sequence[Tried]) -> float:
    """What the recipe's stages took before, for as many epochs; a stage that never ran counts as none."""
    total = 0.0
    for stage in which.stages:
        seen = [
            record.seconds / (record.parameters.get("epochs") or 1)
            for each in tried
            for record in each.records
            if record.stage == stage.name
        ]
        total += (getattr(stage, "epochs", 1) or 1) * statistics.median(seen) if seen else 0.0
    return total
