"""Bootstrap intervals and length-controlled accuracy: hand-computed cases, and an oracle one resample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.evaluate.statistics import (
    Bootstrap,
    accuracy_longer,
    accuracy_shorter,
    is_longer,
    is_right,
    length_controlled,
    mean,
    ratio,
)

QUICK = Bootstrap(resamples=400)


def test_mean_agrees_with_one_resample_at_a_time() -> None:
    values = np.random.default_rng(0).normal(size=23)
    rng = np.random.default_rng(7)
    means = [values[rng.integers(0, 23, 23)].mean() for _ in range(500)]
    found = Bootstrap(resamples=500, seed=7, level=0.8).mean(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.1, 0.9])))
    assert (found.value, found.count) == (pytest.approx(values.mean()), 23)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=10)
    whole = QUICK.mean(values)
    monkeypatch.setattr("twdpo.evaluate.statistics._BLOCK", 70)
    assert QUICK.mean(values) == whole


def test_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(2).normal(3.0, 2.0, 2000)
    found = Bootstrap(resamples=2000).mean(values)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_paired_differences_use_the_pairing() -> None:
    """A constant gain over the same pairs is certain, however different the pairs are."""
    there = np.random.default_rng(3).normal(0.0, 100.0, 40)
    found = QUICK.mean_difference(there + 0.25, there)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_value_lies_within_bounds_and_swaps_sign(seed: int, count: int) -> None:
    here, there = np.random.default_rng(seed).normal(size=(2, count))
    quick = Bootstrap(resamples=50)
    forth, back = quick.mean_difference(here, there), quick.mean_difference(there, here)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert forth.low <= forth.high


def test_no_pairs_and_unlike_columns() -> None:
    empty = QUICK.mean([])
    assert math.isnan(empty.value)
    assert empty.plain() == {"value": None, "low": None, "high": None, "count": 0}
    with pytest.raises(ValueError, match="equally long"):
        QUICK.estimate(ratio, [1.0], [1.0, 2.0])


def test_ratio_is_sum_over_sum() -> None:
    assert QUICK.estimate(ratio, [1.0, 5.0], [2.0, 4.0]).value == 1.0
    assert math.isnan(QUICK.estimate(ratio, [0.0], [0.0]).value)


def test_ties_are_half_right() -> None:
    np.testing.assert_array_equal(is_right([-1.0, 0.0, 2.0, np.nan]), [0.0, 0.5, 1.0, np.nan])
    np.testing.assert_array_equal(is_longer([3, 2, 2], [2, 2, 3]), [1.0, 0.5, 0.0])


def test_length_controlled_by_hand() -> None:
    """Three longer chosen answers, two right; one shorter, wrong; one of equal length, right, half in each."""
    right = np.array([1.0, 1.0, 0.0, 0.0, 1.0])
    longer = np.array([1.0, 1.0, 1.0, 0.0, 0.5])
    assert accuracy_longer(right, longer) == pytest.approx(2.5 / 3.5)
    assert accuracy_shorter(right, longer) == pytest.approx(0.5 / 1.5)
    assert length_controlled(right, longer) == pytest.approx((2.5 / 3.5 + 0.5 / 1.5) / 2)
    assert mean(right) == pytest.approx(0.6)


@given(st.integers(1, 20), st.integers(1, 20))
def test_preferring_long_answers_is_worth_nothing(longer: int, shorter: int) -> None:
    """Whatever share of the chosen answers is longer."""
    is_long = np.array([1.0] * longer + [0.0] * shorter)
    assert length_controlled(is_long, is_long) == 0.5
    assert length_controlled(1.0 - is_long, is_long) == 0.5


def test_without_a_stratum_there_is_no_figure() -> None:
    ones = np.ones(4)
    found = QUICK.estimate(length_controlled, ones, ones)
    assert all(math.isnan(value) for value in (found.value, found.low, found.high))
