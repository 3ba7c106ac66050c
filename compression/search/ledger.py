"""What is known of a search, in Optuna's SQLite file, and what is drawn next from it.

A trial is written when it ends, in one transaction. Draws come from a copy in memory with a sampler seeded anew, so
that the file never holds a trial that is under way, and a search that was killed draws what it would have drawn.
"""

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from compression.errors import SearchError
from compression.search import budget as budgets
from compression.search import space
from compression.search.budget import Budget
from compression.search.outcome import Tried
from compression.search.space import Params, Space

FIRST = 12  # trials before the sampler learns from them
LEARNED, REPEATS = 10, 40  # draws in a row of what was tried: then at random; then the space holds nothing new
WORST = 1e3  # times a limit: optuna takes no infinity
_STATES = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class Ledger:
    """The trials of one search.

    Args:
        path: of the SQLite file; made where it is missing.
        identity: of the search, text: what must be the same for it to go on.
        budget: of the search; its terms are the sampler's constraints.
        seed: of what is drawn.

    Raises:
        SearchError: the file holds another search, or is none.
    """

    def __init__(self, path: Path, *, identity: str, budget: Budget, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._budget, self._seed = budget, seed
        self._directions = [StudyDirection.MINIMIZE] * (3 if budget.names_latency else 2)
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            self._study = optuna.create_study(
                storage=storage, study_name="search", directions=self._directions, load_if_exists=True
            )
            known = self._study.user_attrs.get("identity", identity)
        except Exception as error:
            raise SearchError(f"{path} cannot be read; search in another folder: {error}") from error
        if known != identity:
            raise SearchError(
                f"{path.parent} holds a search of another model, data, budget or seed; search in another folder"
            )
        self._study.set_user_attr("identity", identity)

    def tried(self) -> list[Tried]:
        """Every trial that ended, in order."""
        trials = self._study.get_trials(deepcopy=False)
        return [msgspec.convert(trial.user_attrs["tried"], Tried) for trial in trials]

    def attempts(self, number: int) -> int:
        """How often a trial was begun, this time included; a process that dies of one begins it again."""
        before, times = self._study.user_attrs.get("begun", [number, 0])
        times = times + 1 if before == number else 1
        self._study.set_user_attr("begun", [number, times])
        return int(times)

    @property
    def used(self) -> float:
        """Seconds of searching, killed attempts included up to the last stage that they began."""
        return float(self._study.user_attrs.get("used", 0.0))

    @used.setter
    def used(self, seconds: float) -> None:
        self._study.set_user_attr("used", round(seconds, 3))

    def draw(self, of: Space, families: AbstractSet[str]) -> Params | None:
        """Parameters that were not tried; None where the space seems to hold no more.

        Args:
            of: to draw from.
            families: of what was tried, see `space.family`.
        """
        known = self._study.get_trials(deepcopy=False)
        copy = optuna.create_study(directions=self._directions)
        copy.add_trials(known)
        for repeat in range(REPEATS):
            digest = hashlib.sha256(f"{self._seed} {len(known)} {repeat}".encode()).digest()
            seed = int.from_bytes(digest[:4], "big")
            learned = TPESampler(seed=seed, n_startup_trials=FIRST)
            copy.sampler = learned if repeat < LEARNED else RandomSampler(seed=seed)
            trial = copy.ask()
            params = space.draw(of, trial)
            if space.family(space.make(of, params, epochs=1, name="drawn", seed=0)) not in families:
                return params
            copy.tell(trial, state=TrialState.FAIL)
        return None

    def add(self, tried: Tried, of: Space, params: Params | None) -> None:
        """Book a trial that ended.

        Args:
            tried: what came of it.
            of, params: what it was made from, so that the sampler learns from it; None where it cannot.
        """
        recorded = _Recorder(params or {})
        if params is not None:
            space.draw(of, recorded)
        values, constraints = None, {}
        if tried.report is not None:
            values = [float(tried.report.zstd_bytes), tried.report.drop, tried.report.p95_us][: len(self._directions)]
            constraints = {term.name: self._constraint(tried, Budget((term,))) for term in self._budget.terms}
        self._study.add_trial(
            create_trial(
                state=_STATES[tried.state],
                values=values,
                params=recorded.params,
                distributions=recorded.distributions,
                user_attrs={"tried": msgspec.to_builtins(tried)},
                constraints=constraints,
            )
        )

    def _constraint(self, tried: Tried, term: Budget) -> float:
        return min(WORST, budgets.distance(term, tried.figures, certain=False))


class _Recorder:
    """Gives the parameters that it has, and notes from what they could have been drawn."""

    def __init__(self, params: Params) -> None:
        self.given = params
        self.params: Params = {}
        self.distributions: dict[str, BaseDistribution] = {}

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._note(name, CategoricalDistribution(list(choices)))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        return float(self._note(name, FloatDistribution(low, high, step=step)))

    def _note(self, name: str, distribution: BaseDistribution) -> Any:
        self.params[name], self.distributions[name] = self.given[name], distribution
        return self.given[name]
