"""Reworked weights: what stays the same of their distribution, and that nothing but seed, pair and side decides."""

from __future__ import annotations

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twdpo.pipeline.annotate.sources.reworking import draws, permutation, random_bits, resampled, shuffled
from twdpo.weights_cache.mantissa import round_mantissa
from twdpo.weights_cache.transforms import sink_fix

KEY = "0123456789abcdef" * 2

numbers = st.lists(st.floats(0, 50, width=32), min_size=1, max_size=40)
seeds = st.integers(0, 2**40)


def mean_one(values: list[float]) -> np.ndarray:
    exact = np.array(values, np.float64)
    return (exact / exact.sum() * len(exact) if exact.sum() > 0 else np.ones(len(exact))).astype(np.float32)


def bits(n: int, seed: int, key: str = KEY, side: str = "chosen") -> np.ndarray:
    return random_bits(n, seed=seed, example_hash=key, side=side)


@settings(deadline=None)
@given(numbers, seeds)
def test_shuffling_keeps_the_weights_and_the_first_before_and_after_the_sink_fix(
    values: list[float], seed: int
) -> None:
    weights = mean_one(values)
    moved = shuffled({3: weights}, bits(len(weights), seed), 1)[3]
    assert moved.dtype == np.float32
    assert moved[0] == weights[0]
    assert collections.Counter(moved.tolist()) == collections.Counter(weights.tolist())
    np.testing.assert_allclose(np.sort(sink_fix(moved)), np.sort(sink_fix(weights)), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(numbers, seeds)
def test_drawing_keeps_the_sum_and_the_first_and_takes_only_what_is_there(values: list[float], seed: int) -> None:
    weights = round_mantissa(mean_one(values))
    n = len(weights)
    drawn = resampled({0: weights}, bits(n, seed), 1)[0]
    assert drawn[0] == weights[0]
    assert drawn.sum(dtype=np.float64) == pytest.approx(weights.sum(dtype=np.float64), rel=1e-5)
    assert np.all(drawn >= 0)
    if drawn[1:].sum() > 0 and weights[draws(n, bits(n, seed), 1)[1:]].sum() > 0:
        # But for one factor, the weights of other tokens behind the first.
        factor = weights[draws(n, bits(n, seed), 1)[1:]].sum(dtype=np.float64) / drawn[1:].sum(dtype=np.float64)
        nearest = np.abs(drawn[1:, None] * factor - weights[None, 1:]).min(axis=1)
        assert np.all(nearest <= 1e-4 * (1 + weights.max()))


@settings(deadline=None)
@given(st.integers(2, 30), seeds)
def test_all_layers_are_reworked_alike(n: int, seed: int) -> None:
    place = np.arange(n, dtype=np.float32)
    moved = shuffled({0: place, 7: place[::-1].copy()}, bits(n, seed), 1)
    np.testing.assert_array_equal(moved[0] + moved[7], np.full(n, n - 1))
    chosen = draws(n, bits(n, seed), 1)
    assert chosen[0] == 0
    assert chosen[1:].min() >= 1
    assert chosen.max() < n


def test_a_one_hot_answer_stays_one() -> None:
    weights = np.array([4, 0, 0, 0], np.float32)
    np.testing.assert_array_equal(shuffled({0: weights}, bits(4, 1), 1)[0], weights)
    np.testing.assert_array_equal(resampled({0: weights}, bits(4, 1), 1)[0], weights)
    # All the weight on one token that is not the first: what is not drawn at all is spread evenly.
    weights = np.array([0, 3, 0], np.float32)
    seen = {tuple(resampled({0: weights}, bits(3, seed), 1)[0].tolist()) for seed in range(40)}
    assert seen == {(0, 1.5, 1.5), (0, 3, 0), (0, 0, 3)}


def test_seed_pair_and_side_decide() -> None:
    base = bits(50, 0)
    assert np.array_equal(base, bits(50, 0))
    assert np.array_equal(base[:20], bits(20, 0))
    for other in (bits(50, 1), bits(50, 0, key="f" * 32), bits(50, 0, side="rejected")):
        assert not np.array_equal(permutation(50, base, 1), permutation(50, other, 1))
        assert not np.array_equal(draws(50, base, 1), draws(50, other, 1))


def test_the_stream_of_a_version_stays() -> None:
    """Caches that were begun with one numpy are gone on with under another."""
    assert permutation(8, bits(8, 0), 1).tolist() == [0, 7, 1, 3, 2, 4, 5, 6]
    assert draws(8, bits(8, 0), 1).tolist() == [0, 1, 3, 3, 5, 5, 7, 1]


def test_every_permutation_and_every_token_is_as_likely() -> None:
    orders = collections.Counter(tuple(permutation(4, bits(4, seed), 1).tolist()) for seed in range(1200))
    assert len(orders) == 6
    assert all(140 <= count <= 260 for count in orders.values())
    taken = collections.Counter(np.concatenate([draws(5, bits(5, seed), 1)[1:] for seed in range(500)]).tolist())
    assert sorted(taken) == [1, 2, 3, 4]
    assert all(420 <= count <= 580 for count in taken.values())


def test_without_a_sink_the_first_token_moves_too() -> None:
    orders = collections.Counter(tuple(permutation(3, bits(3, seed), 0).tolist()) for seed in range(1200))
    assert len(orders) == 6
    assert all(140 <= count <= 260 for count in orders.values())
    taken = collections.Counter(np.concatenate([draws(4, bits(4, seed), 0) for seed in range(500)]).tolist())
    assert sorted(taken) == [0, 1, 2, 3]
    assert all(420 <= count <= 580 for count in taken.values())
    weights = np.array([4, 2, 1, 1], np.float32)
    assert {shuffled({0: weights}, bits(4, seed), 0)[0][0] for seed in range(20)} == {4, 2, 1}
    assert all(resampled({0: weights}, bits(4, seed), 0)[0].sum() == pytest.approx(8) for seed in range(20))
