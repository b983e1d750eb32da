"""benchmarks/position_bias.py and its figures, against hand-computed cases and few-line oracles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.docs.scripts import loaded
from twdpo.weights_cache import SideWeights


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with loaded(["position_bias"]) as modules:
        yield modules["position_bias"]


@pytest.fixture(scope="module")
def figures() -> Iterator[Any]:
    with loaded(["position_bias_figures"]) as modules:
        yield modules["position_bias_figures"]


def test_agreement_by_hand(figures: Any) -> None:
    # p is 1/4, 1/4, 1/2 and 1/2, 1/4, 1/4, whatever the scale: a quarter of the mass lies elsewhere.
    assert figures.agreement(np.array([1, 1, 2]), np.array([6, 3, 3])) == pytest.approx(0.75)
    assert figures.agreement(np.array([1, 0]), np.array([0, 1])) == 0


_WEIGHTS = st.lists(st.tuples(*[st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0])] * 2), min_size=2, max_size=12)


@settings(max_examples=40)
@given(both=_WEIGHTS)
def test_rank_correlation_is_that_of_counted_ranks(figures: Any, both: list[tuple[float, float]]) -> None:
    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    x, y = (list(column) for column in zip(*both, strict=True))
    found = figures.rank_correlation(np.array(x), np.array(y))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])


@settings(max_examples=40)
@given(both=_WEIGHTS)
def test_one_order_shares_with_the_mean_what_follows_from_the_two(
    figures: Any, both: list[tuple[float, float]]
) -> None:
    """The page gives that column by this rule: half of the variation between the orders."""
    a, b = (np.array(column) / sum(column) for column in zip(*both, strict=True))
    assert figures.agreement(a, (a + b) / 2) == pytest.approx((1 + figures.agreement(a, b)) / 2)


def test_shape_by_hand(figures: Any) -> None:
    half = figures.shape(np.array([0.5, 0.5, 0, 0]), np.array([0.4, 0.3, 0.2, 0.1]), 0.03)
    assert (half.share, half.first) == (0.03, 0.5)
    assert half.effective == pytest.approx(0.5)  # two of four tokens
    assert half.centre == pytest.approx(1 / 6)  # halfway between places 0 and 1/3
    assert figures.centre(np.array([1.0])) == 0.5


def _side(weights: list[float]) -> SideWeights:
    starts = np.arange(len(weights), dtype=np.int32)
    return SideWeights(starts=starts, ends=starts + 1, weights={7: np.array(weights, np.float32)})


def test_each_answer_is_read_where_it_stood(script: Any) -> None:
    """The chosen answer is A in the first order, the rejected one in the second."""
    sides = {
        "chosen": (_side([3, 1]), _side([1, 3])),
        "rejected": (_side([2, 0, 1]), _side([0, 1, 2])),
    }
    cr = {7: (np.array([0.3, 0.1]), np.array([0.02, 0, 0.01]))}
    rc = {7: (np.array([0, 0.1, 0.2]), np.array([0.04, 0.12]))}
    chosen, rejected = script.compare_pair(5, sides, (cr, rc), np.random.default_rng(0))
    assert [answer.pair for answer in (chosen, rejected)] == [5, 5]
    assert [place.first for place in chosen.places] == pytest.approx([3 / 4, 1 / 4])
    assert [place.share for place in chosen.places] == pytest.approx([0.4, 0.16])
    assert [place.first for place in rejected.places] == pytest.approx([0, 2 / 3])
    assert [place.share for place in rejected.places] == pytest.approx([0.3, 0.03])
    assert chosen.agreement == pytest.approx(0.5)
    assert chosen.even == pytest.approx(1)
    # Fewer than five tokens: no sink fix.
    assert chosen.fixed == chosen.agreement


def test_verdicts_by_hand(figures: Any) -> None:
    """P(A) of three pairs: A twice, B twice, and one whose chosen answer wins wherever it stands."""
    of = figures.Verdicts(cr=np.array([0.9, 0.4, 0.7]), rc=np.array([0.8, 0.3, 0.2])).figures
    assert of["mean P(A)"] == pytest.approx(3.3 / 6)
    assert of["verdict flips with the order"] == pytest.approx(2 / 3)
    assert of["A in both orders"] == of["B in both orders"] == pytest.approx(1 / 3)
    assert of["chosen preferred, chosen at A"] == pytest.approx(2 / 3)
    assert of["chosen preferred, chosen at B"] == pytest.approx(2 / 3)
    assert of["chosen preferred, mean of both orders"] == 1


def test_the_interval_draws_whole_pairs(figures: Any) -> None:
    """Two pairs of two equal answers are two observations, not four."""
    assert figures.interval([0, 0, 1, 1], [3, 3, 8, 8]) == (0, 1)
    low, high = figures.interval([0.2, 0.4, 0.3, 0.3], [0, 0, 1, 1])
    assert (low, high) == pytest.approx((0.3, 0.3))


def test_what_was_read_is_kept(script: Any) -> None:
    answers = list(
        script.compare_pair(
            0,
            {"chosen": (_side([3, 1]), _side([1, 3])), "rejected": (_side([1]), _side([1]))},
            [{7: (np.array([0.3, 0.1]), np.array([0.3, 0.1]))}] * 2,
            np.random.default_rng(0),
        )
    )
    verdicts = script.Verdicts(cr=np.array([0.9, 0.5]), rc=np.array([0.1, 0.2]))
    content = json.loads(json.dumps(script.kept(answers, verdicts, 3, "here")))
    again, of, eligible, machine = script.restored(content)
    assert repr(again) == repr(answers)  # a rank correlation may be NaN
    assert of.figures == verdicts.figures
    assert (eligible, machine) == (3, "here")
