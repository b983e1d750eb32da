"""Attention to weights, against a few-line oracle and by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from twdpo.pipeline.annotate.weights import combine_orders, distribution, order_agreement, verdict_probability

Floats = NDArray[np.float32]


@st.composite
def two_rows(draw: st.DrawFn) -> tuple[Floats, Floats]:
    n = draw(st.integers(1, 40))
    values = st.floats(0, 1, width=32, allow_subnormal=False)
    return tuple(np.asarray(draw(st.lists(values, min_size=n, max_size=n)), np.float32) for _ in range(2))  # type: ignore[return-value]


def oracle(first: list[float], second: list[float]) -> list[float]:
    """The published rule, written out: p = a / sum a (uniform if that is 0), mean of the orders, times n."""

    def p(a: list[float]) -> list[float]:
        return [x / sum(a) for x in a] if sum(a) else [1 / len(a)] * len(a)

    return [len(first) * (x + y) / 2 for x, y in zip(p(first), p(second), strict=True)]


@given(two_rows())
def test_weights_equal_the_published_rule(rows: tuple[Floats, Floats]) -> None:
    first, second = rows
    np.testing.assert_allclose(combine_orders(first, second), oracle(first.tolist(), second.tolist()), rtol=1e-6)


@given(two_rows())
def test_mean_weight_is_one_and_orders_are_symmetric(rows: tuple[Floats, Floats]) -> None:
    weights = combine_orders(*rows)
    assert weights.dtype == np.float32
    assert (weights >= 0).all()
    assert weights.mean(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(weights, combine_orders(rows[1], rows[0]))


def test_uniform_attention_gives_ones() -> None:
    row = np.full(7, 0.01, np.float32)
    np.testing.assert_allclose(combine_orders(row, row), np.ones(7), rtol=1e-6)


def test_zero_attention_is_uniform() -> None:
    assert distribution(np.zeros(4, np.float32)).tolist() == [0.25] * 4


@given(two_rows())
def test_agreement_is_a_share(rows: tuple[Floats, Floats]) -> None:
    assert -1e-9 <= order_agreement(*rows) <= 1 + 1e-9
    assert order_agreement(rows[0], rows[0]) == pytest.approx(1.0)


def test_agreement_of_orders_that_share_nothing_is_zero() -> None:
    assert order_agreement(np.array([1, 0], np.float32), np.array([0, 2], np.float32)) == 0.0


def test_verdict_probability_is_a_softmax_over_two() -> None:
    assert verdict_probability(1.5, 1.5) == 0.5
    assert verdict_probability(2.0, 1.0) == pytest.approx(np.exp(2) / (np.exp(2) + np.exp(1)))
    assert verdict_probability(-1e4, 1e4) < 1e-300
