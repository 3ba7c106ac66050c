"""The search's book: what ended is there, what was under way is tried again, and draws are the same after a kill."""

from pathlib import Path

import msgspec
import pytest

from compression.errors import SearchError
from compression.measure import Report, Worst
from compression.search import budget, outcome, space
from compression.search.ledger import Ledger
from compression.search.outcome import State, Tried
from compression.search.schedule import Schedule, expected_seconds
from compression.stage import Record

BUDGET = budget.parse("size<=64KiB, drop<=1pt")
SPACE = space.build([])
WORST = Worst(name="a", accuracy=0.5, samples=9)


def report(size: int, drop: float) -> Report:
    whole = {field.name: field.type(1) for field in msgspec.structs.fields(Report) if field.type in {int, float}}
    figures = {**whole, "zstd_bytes": size, "drop": drop, "drop_low": drop - 0.002, "drop_high": drop + 0.002}
    return Report(**figures, worst_class=WORST, worst_device=WORST)  # type: ignore[arg-type]


def ledger(folder: Path, *, identity: str = "me", of: budget.Budget = BUDGET) -> Ledger:
    return Ledger(folder / "study.db", identity=identity, budget=of, seed=5)


def schedule(book: Ledger) -> Schedule:
    return Schedule(space=SPACE, ledger=book, samples=1000, allowed=0.01, trains=True, seed=5)


def go(book: Ledger, tried: list[Tried], count: int, state: State = "complete") -> None:
    """So many trials with figures that follow from the recipe."""
    for _ in range(count):
        plan = schedule(book).next(tried, seconds_left=1e9)
        assert plan is not None
        size = 1000 + sum(map(ord, space.words(plan.recipe))) * 37 % 90_000
        ended = Tried(
            number=len(tried),
            recipe=plan.recipe,
            words=space.words(plan.recipe),
            why=plan.why,
            family=space.family(plan.recipe),
            rung=plan.rung,
            state=state,
            seconds=1.0,
            report=report(size, size % 7 / 100) if state == "complete" else None,
            records=(Record(stage="prune", parameters={"epochs": 2}, seconds=8.0, deterministic=True, notes={}),),
        )
        book.add(ended, SPACE, plan.params)
        tried.append(ended)


@pytest.mark.parametrize("text", ["size<=64KiB, drop<=1pt", "size<=64KiB, p95<=2ms", "drop<=1pt"])
def test_a_book_that_is_opened_again_holds_all_that_ended_and_draws_the_same(tmp_path: Path, text: str) -> None:
    of = budget.parse(text)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    whole: list[Tried] = []
    go(ledger(tmp_path / "one", of=of), whole, 26)
    again: list[Tried] = []
    for _ in range(13):  # a process that lives for two trials
        book = ledger(tmp_path / "other", of=of)
        assert msgspec.json.encode(book.tried()) == msgspec.json.encode(again)
        go(book, again, 2)
    assert msgspec.json.encode(again) == msgspec.json.encode(whole)
    assert {tried.why for tried in whole} >= {"technique", "drawn", "longer", "tiny"}
    assert len({(tried.family, tried.rung) for tried in whole}) == len(whole)


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_trials_that_were_not_measured_do_not_keep_the_sampler_from_drawing(tmp_path: Path, state: State) -> None:
    tried: list[Tried] = []
    go(ledger(tmp_path), tried, 24, state)
    assert tried[-1].why == "drawn"


def test_a_trial_that_ends_its_process_again_and_again_is_counted(tmp_path: Path) -> None:
    assert [ledger(tmp_path).attempts(4) for _ in range(3)] == [1, 2, 3]
    assert ledger(tmp_path).attempts(5) == 1


def test_another_search_or_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    ledger(tmp_path)
    with pytest.raises(SearchError, match="holds a search of another model, data, budget or seed"):
        ledger(tmp_path, identity="you")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.db").write_bytes(b"no database" * 1000)
    with pytest.raises(SearchError, match=r"study.db cannot be read; search in another folder"):
        ledger(tmp_path / "broken")


def test_a_plan_that_does_not_fit_the_time_left_is_not_begun(tmp_path: Path) -> None:
    book, tried = ledger(tmp_path), list[Tried]()
    go(book, tried, 22)
    assert expected_seconds(tried[-1].recipe, tried) >= 0
    pruned = next(each.recipe for each in tried if each.recipe.stages[0].name == "prune")
    epochs = getattr(pruned.stages[0], "epochs", 0)
    assert expected_seconds(pruned, tried) == 4.0 * epochs
    while (plan := schedule(book).next(tried, seconds_left=0.5)) is not None:
        assert expected_seconds(plan.recipe, tried) <= 0.5
        go(book, tried, 1)
        if len(tried) > 40:
            break


def test_what_is_chosen_is_the_smallest_within_the_budget_and_else_the_nearest_is_named(tmp_path: Path) -> None:
    tried: list[Tried] = []
    go(ledger(tmp_path), tried, 8)
    sized = [
        msgspec.structs.replace(each, report=report(size, drop))
        for each, size, drop in zip(tried, [90_000, 50_000, 40_000, 70_000], [0.0, 0.004, 0.009, 0.0], strict=False)
    ]
    chosen = outcome.choose(sized, BUDGET)
    assert chosen is not None
    assert chosen.number == 1  # number 2 is smaller, and its interval reaches 1.1 points
    assert outcome.shortfall(sized, BUDGET) == ""
    words = outcome.shortfall(sized[2:], BUDGET)
    assert words.startswith("nothing met the budget size<=64KiB, drop<=1pt; nearest is search-3 (")
    assert words.endswith("bytes on the way (Zstandard) is 68.359KiB, 4.3594KiB above 64KiB")
    assert "no trial came as far as being measured" in outcome.shortfall([], BUDGET)


def test_the_time_of_attempts_that_were_killed_is_kept(tmp_path: Path) -> None:
    book = ledger(tmp_path)
    assert book.used == 0.0
    book.used = 12.5
    assert ledger(tmp_path).used == 12.5
