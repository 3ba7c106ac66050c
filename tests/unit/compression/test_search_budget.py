"""Budgets: what they mean, what is refused and by which words, and by how much one is missed."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.errors import BudgetError
from compression.search import budget
from compression.search.budget import MEASURES, UNITS, Budget, Term


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("size<=64KiB", 65536),
        ("size<=64kB", 64000),
        ("raw <= 1.5 MiB", 1572864),
        ("gzip<=100B", 100),
        ("p95<=2ms", 2000),
        ("p50<=80us", 80),
        ("drop<=0.5pt", 0.005),
        ("drop<=0.5%", 0.005),
        ("ece<=1pt", 0.01),
        ("arena<=16KiB", 16384),
    ],
)
def test_a_term_is_a_measure_a_number_and_its_unit(text: str, most: float) -> None:
    (term,) = budget.parse(text).terms
    assert term.most == pytest.approx(most)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the budget is empty; write for example"),
        (" , ", "the budget is empty"),
        ("sise<=64KiB", "'sise<=64KiB': nothing is called 'sise'; did you mean 'size'"),
        ("zzz<=64KiB", "nothing is called 'zzz'; there are size, "),
        ("size<64KiB", "'size<64KiB': put <= between 'size' and its limit"),
        ("size 64KiB", "put <= between"),
        ("size<=64", "'size' needs one of the units B, "),
        ("size<=2ms", "'size<=2ms': 'size' needs one of the units B, "),
        ("p95<=2KiB", "'p95' needs one of the units us, "),
        ("drop<=0.5", "'drop' needs one of the units pt, %"),
        ("size<=KiB", "'' is no number"),
        ("size<=1.2.3KiB", "'1.2.3' is no number"),
        ("size<=-1KiB", "and of bytes and time zero or more"),
        ("size<=1e999KiB", "must be finite"),
        ("size<=1KiB, size<=2KiB", "'size' is limited twice"),
        ("size<=1KiB; p95<=2ms", "is no limit|is no number|units"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_term_at_fault(text: str, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        budget.parse(text)


names = st.sampled_from(sorted(MEASURES))
budgets = st.dictionaries(names, st.floats(1e-4, 1e9), min_size=1).map(
    lambda limits: Budget(tuple(Term(name=name, most=most) for name, most in limits.items()))
)


@given(budgets)
def test_a_budget_that_is_written_and_read_again_is_the_same_to_a_thousandth(given_budget: Budget) -> None:
    again = budget.parse(budget.text(given_budget))
    assert [term.name for term in again.terms] == [term.name for term in given_budget.terms]
    for one, other in zip(given_budget.terms, again.terms, strict=True):
        assert other.most == pytest.approx(one.most, rel=1e-3)


@given(st.text(max_size=30))
def test_any_text_is_a_budget_or_is_refused(text: str) -> None:
    with contextlib.suppress(BudgetError):
        assert all(term.name in MEASURES and term.most >= 0 for term in budget.parse(text).terms)


figures = st.fixed_dictionaries(
    {
        field: st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
        for field in {measure.field for measure in MEASURES.values()} | {"drop_high"}
    }
)


@given(budgets, figures)
def test_the_distance_is_zero_exactly_where_the_budget_is_met(
    given_budget: Budget, measured: dict[str, float | None]
) -> None:
    missed = budget.excesses(given_budget, measured)
    assert (budget.distance(given_budget, measured) == 0) == (not missed)
    assert all(excess.words() for excess in missed)


def test_what_was_not_measured_meets_no_limit() -> None:
    for value in (None, math.nan):
        (missed,) = budget.excesses(budget.parse("size<=1MiB"), {"zstd_bytes": value})
        assert missed.relative == math.inf
        assert "was not measured" in missed.words()


def test_accuracy_must_be_certain_and_the_words_say_when_only_the_interval_is_at_fault() -> None:
    allowed = budget.parse("drop<=0.5pt")
    assert not budget.excesses(allowed, {"drop": 0.001, "drop_high": 0.005})
    (missed,) = budget.excesses(allowed, {"drop": 0.001, "drop_high": 0.007})
    assert missed.words() == "the interval of validation accuracy lost reaches 0.7pt, 0.2pt above 0.5pt"
    assert not budget.excesses(allowed, {"drop": 0.001, "drop_high": 0.007}, certain=False)
    (missed,) = budget.excesses(allowed, {"drop": 0.009, "drop_high": 0.02})
    assert missed.words() == "validation accuracy lost is 0.9pt, 0.4pt above 0.5pt"


def test_every_quantity_has_units() -> None:
    assert {measure.quantity for measure in MEASURES.values()} == set(UNITS)


def test_less_than_nothing_may_be_lost_where_training_makes_up_for_it() -> None:
    asked = budget.parse("drop<=-0.5pt, ece<=-1%")
    assert [term.most for term in asked.terms] == pytest.approx([-0.005, -0.01])
