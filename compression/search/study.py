"""The search: techniques alone first, then recipes that Optuna draws, and longer training of what is promising.

What ends is booked in the folder at once; what was under way when a process died is tried again by the next one.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from compression import candidate, channels, recipe
from compression.errors import CompressionError, SearchError
from compression.measure import Judge
from compression.recipe import Recipe
from compression.search import budget as budgets
from compression.search import outcome, sensitivity, space
from compression.search.artifacts import Artifacts
from compression.search.budget import Budget
from compression.search.cache import LIMIT_BYTES, Cache
from compression.search.ledger import Ledger
from compression.search.outcome import Found, Outcome, Tried
from compression.search.schedule import Plan, Schedule
from compression.search.sensitivity import LayerLoss
from compression.search.trying import OutOfTime, Stopped, Trier
from compression.source import Source

logger = logging.getLogger(__name__)
MOST_ATTEMPTS = 3  # of a trial that ends the process

OnProgress = Callable[[float, str, str], None]
"""Hears the fraction done, what begins now, and the best so far, as phrases for a person."""


def run(
    source: Source,
    judge: Judge,
    budget: Budget,
    *,
    folder: Path,
    seconds: float,
    trials: int,
    seed: int = 0,
    on_progress: OnProgress = lambda _fraction, _phrase, _best: None,
    cache_bytes: int = LIMIT_BYTES,
) -> Outcome:
    """Search, or go on with the search that `folder` holds.

    The same source, budget, seed and number of trials give the same trials again, as far as the budget names no
    latency, which is never measured twice the same, and time does not end it first.

    Args:
        source: weights, data and task; its test part is not looked at.
        judge: measures artifacts; the members of the front get their test figures from it, once, at the end.
        budget: what an artifact may cost.
        folder: keeps the trials, the front's artifacts and what trials share; of one search alone.
        seconds: when no further trial begins, killed attempts included.
        trials: so many at most.
        seed: of everything that is drawn.
        on_progress: hears what happens.
        cache_bytes: of what trials share on disk.

    Raises:
        SearchError: no time or no trial is allowed, or the folder holds another search.
        CompressionError: the model cannot be compressed at all.
    """
    if not seconds > 0 or trials < 1:
        raise SearchError(f"a search needs time and trials, got {seconds:g} seconds and {trials} trials")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = _Options(seconds, trials, seed, on_progress, cache_bytes)
    return _Search(source, judge, budget, folder, options).run()


@dataclass(frozen=True)
class _Options:
    seconds: float
    trials: int
    seed: int
    on_progress: OnProgress
    cache_bytes: int


class _Search:
    def __init__(self, source: Source, judge: Judge, budget: Budget, folder: Path, options: "_Options") -> None:
        from cloud.learning import weights
        from cloud.learning.backend import use_tensorflow

        use_tensorflow()
        self._begun = time.monotonic()
        self._judge, self._budget, self._folder, self._options = judge, budget, folder, options
        self._artifacts = Artifacts(folder / "artifacts")
        self._model = weights.build(source.task, seed=0)
        weights.put(self._model, source.weights)
        self._bench = candidate.bench(source, seed=options.seed, on_stage=self._phase)
        pieces = Cache(folder / "pieces", limit_bytes=options.cache_bytes)
        self._trier = Trier(self._model, self._bench, pieces, expired=lambda: self._left() <= 0)
        known = [self._trier.origin, budgets.text(budget), options.seed, sorted(recipe.stage_classes())]
        identity = msgspec.json.encode(known).decode()
        self._ledger = Ledger(folder / "study.db", identity=identity, budget=budget, seed=options.seed)
        self._tried = self._ledger.tried()
        self._before = self._ledger.used
        # Versions that come from devices have no data of their own: training would make them forget.
        self._trains = source.version.snapshot_sha256 is not None

    def run(self) -> Outcome:
        losses = self._sensitivity()
        schedule = Schedule(
            space=space.build(losses, trains=self._trains, filters=channels.makers(self._model)),
            ledger=self._ledger,
            samples=len(self._bench.train.x),
            allowed=self._budget.most("drop") or 0.0,
            trains=self._trains,
            seed=self._options.seed,
        )
        while len(self._tried) < self._options.trials and self._left() > 0:
            plan = schedule.next(self._tried, seconds_left=self._left())
            ended = None if plan is None else self._try(plan)
            if plan is None or ended is None:
                break
            self._ledger.add(ended, schedule.space, plan.params)
            self._tried.append(ended)
            self._artifacts.keep_only({tried.sha256 for tried in self._wanted()})
        return self._outcome(losses)

    def _left(self) -> float:
        return self._options.seconds - self._used()

    def _used(self) -> float:
        return self._before + time.monotonic() - self._begun

    def _phase(self, phrase: str) -> None:
        self._ledger.used = self._used()
        done, used = len(self._tried) / self._options.trials, self._used() / self._options.seconds
        fraction = min(1.0, max(0.0, done, used))
        best = outcome.best_words(self._tried, self._budget)
        self._options.on_progress(fraction, f"trial {len(self._tried) + 1}: {phrase}", best)

    def _sensitivity(self) -> list[LayerLoss]:
        path = self._folder / "sensitivity.json"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=list[LayerLoss])
        found = sensitivity.measure(self._model, self._bench.validation, on_stage=self._phase)
        candidate.write(path, msgspec.json.encode(found))
        return found

    def _try(self, plan: Plan) -> Tried | None:
        """Run a plan; None where time was up."""
        begun, number = time.monotonic(), len(self._tried)
        self._phase(space.words(plan.recipe))
        tried = Tried(
            number=number,
            recipe=plan.recipe,
            words=space.words(plan.recipe),
            why=plan.why,
            family=space.family(plan.recipe),
            rung=plan.rung,
            state="failed",
            seconds=0.0,
            reason=f"the process ended {MOST_ATTEMPTS} times while it ran",
        )
        if self._ledger.attempts(number) > MOST_ATTEMPTS:
            return tried
        found: dict[str, Any]
        try:
            found = self._measured(plan.recipe)
        except OutOfTime:
            return None
        except Stopped as stopped:
            found = {"state": "stopped", "reason": str(stopped)}
        except CompressionError as error:
            found = {"state": "failed", "reason": str(error)}
        logger.info("%s: %s %s", tried.words, found["state"], found["reason"])
        return msgspec.structs.replace(tried, seconds=round(time.monotonic() - begun, 3), **found)

    def _measured(self, which: Recipe) -> dict[str, Any]:
        piece = self._trier.make(which, most_drop=self._budget.most("drop"))
        assert piece.artifact is not None  # noqa: S101 a checked recipe ends with an artifact
        self._phase("measuring")
        report = self._judge.validation(piece.artifact)
        sha256 = self._artifacts.put(piece.artifact)
        return {"state": "complete", "reason": "", "report": report, "sha256": sha256, "records": piece.records}

    def _wanted(self) -> list[Tried]:
        """What the outcome needs the artifacts of: the front, and what is chosen."""
        best = outcome.choose(self._tried, self._budget)
        front = outcome.front(self._tried)
        return front if best is None or best in front else [*front, best]

    def _found(self, tried: Tried) -> Found:
        content = self._artifacts.get(tried.sha256)
        assert tried.report is not None  # noqa: S101 only measured trials are wanted
        return Found(tried.recipe, content, self._judge.test(tried.report, content), tried.records)

    def _outcome(self, losses: list[LayerLoss]) -> Outcome:
        best = outcome.choose(self._tried, self._budget)
        words = outcome.best_words(self._tried, self._budget)
        self._options.on_progress(1.0, "measuring the front on the test part", words)
        found = {tried.number: self._found(tried) for tried in self._wanted()}
        return Outcome(
            front=[found[tried.number] for tried in outcome.front(self._tried)],
            trials=self._tried,
            sensitivity=losses,
            chosen=None if best is None else found[best.number],
            shortfall=outcome.shortfall(self._tried, self._budget),
            seconds=round(self._used(), 1),
        )
