"""Verdicts in two orders, their tally and its interval, against cases worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.evaluate.judging.verdicts import Verdict, compare, tally
from twdpo.evaluate.statistics import Bootstrap

QUICK = Bootstrap(resamples=200)


def verdict(first: float, second: float, question: str = "q", **about: Any) -> Verdict:
    fields = {"turn": 1, "category": "", "truncated": False, "judged": True, "characters_a": 10, "characters_b": 20}
    return Verdict(question=question, first=first, second=second, **(fields | about))


@pytest.mark.parametrize(
    ("first", "second", "score", "disagree"),
    [
        (0.9, 0.6, 1.0, False),
        (0.1, 0.4, 0.0, False),
        (0.9, 0.4, 0.5, True),  # always the answer shown first
        (0.4, 0.9, 0.5, True),
        (0.5, 0.9, 0.5, False),  # one is even
        (0.5, 0.5, 0.5, False),
        (0.5, 0.1, 0.5, False),
    ],
)
def test_a_win_takes_both_orders(first: float, second: float, score: float, disagree: bool) -> None:
    found = verdict(first, second)
    assert (found.score, found.disagree) == (score, disagree)


def test_counts_by_hand() -> None:
    verdicts = [
        verdict(0.9, 0.8, "1", category="math"),
        verdict(0.9, 0.2, "2", category="math", truncated=True),
        verdict(0.2, 0.1, "3", category="code"),
        verdict(1.0, 1.0, "4", category="code", judged=False, characters_b=0),
    ]
    found = compare(verdicts, QUICK)
    assert (found.overall.wins, found.overall.ties, found.overall.losses) == (2, 1, 1)
    assert found.overall.win_rate.value == pytest.approx(2.5 / 4)
    assert found.overall.probability.value == pytest.approx((0.85 + 0.55 + 0.15 + 1) / 4)
    assert found.disagreement == pytest.approx(1 / 3)
    # Of six readings four prefer the answer that stands first: 0.9; 0.9 and 0.2; 0.1.
    assert found.first_preferred == pytest.approx((1 + 0 + 1 + 1 + 0 + 1) / 6)
    assert (found.truncated, found.empty) == (1, 1)
    assert (found.mean_characters_a, found.mean_characters_b) == (10, 15)
    assert {name: (t.wins, t.ties, t.losses) for name, t in found.categories.items()} == {
        "math": (1, 1, 0),
        "code": (1, 0, 1),
    }
    assert found.turns == {}


def test_a_judge_that_sees_the_place_alone_gives_ties_alone() -> None:
    found = compare([verdict(0.99, 0.01, str(i)) for i in range(50)], QUICK)
    assert (found.disagreement, found.first_preferred) == (1.0, 1.0)
    assert (found.overall.win_rate.value, found.overall.win_rate.low, found.overall.win_rate.high) == (0.5, 0.5, 0.5)


def test_turns_of_a_question_are_drawn_together() -> None:
    """Two turns that always agree hold no more than one: the interval is that of the questions."""
    once = [verdict(0.9, 0.9 if i % 3 else 0.1, str(i)) for i in range(30)]
    twice = once + [verdict(v.first, v.second, v.question, turn=2) for v in once]
    one, two = tally(once, QUICK), tally(twice, QUICK)
    assert (two.win_rate.low, two.win_rate.high, two.win_rate.count) == (
        one.win_rate.low,
        one.win_rate.high,
        one.win_rate.count,
    )
    assert set(compare(twice, QUICK).turns) == {"1", "2"}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8))
def test_changing_sides_turns_the_result_round(chances: list[tuple[float, float]]) -> None:
    here = [verdict(a, b, str(i)) for i, (a, b) in enumerate(chances)]
    there = [verdict(1 - b, 1 - a, str(i)) for i, (a, b) in enumerate(chances)]
    if any(0 < abs(x - 0.5) < 1e-9 for pair in chances for x in pair):
        return  # 1 − x would round to the other side
    one, other = compare(here, QUICK), compare(there, QUICK)
    assert (one.overall.wins, one.overall.ties) == (other.overall.losses, other.overall.ties)
    assert one.overall.win_rate.value == pytest.approx(1 - other.overall.win_rate.value)
    assert one.disagreement == pytest.approx(other.disagreement)
    assert one.first_preferred == pytest.approx(other.first_preferred)
    assert one.overall.win_rate.low <= one.overall.win_rate.value <= one.overall.win_rate.high


def test_nothing_judged_is_null_in_json() -> None:
    found = compare([verdict(1.0, 1.0, judged=False)], QUICK)
    assert math.isnan(found.disagreement)
    plain = found.plain()
    assert plain["disagreement"] is None
    assert plain["overall"]["win_rate"]["value"] == 1.0
