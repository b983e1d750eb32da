"""Sink fix, mix and attention source: by hand, by oracle and by properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.errors import UsageError
from twdpo.weights_cache.transforms import parse_attn_source, select, sink_fix, uniform_mix

rows = st.lists(st.floats(0, 100, width=32, allow_subnormal=False), min_size=1, max_size=40).map(
    lambda values: np.asarray(values, np.float32)
)


def test_sink_fix_by_hand() -> None:
    fixed = sink_fix(np.array([3.0, 0.5, 0.5, 0.5, 0.5], np.float32))
    np.testing.assert_allclose(fixed, [1, 1, 1, 1, 1])
    fixed = sink_fix(np.array([2.0, 2.0, 0.0, 0.0, 1.0], np.float32))
    np.testing.assert_allclose(fixed, [1, 8 / 3, 0, 0, 4 / 3], rtol=1e-6)


@given(rows)
def test_sink_fix_keeps_the_sum_and_the_others_proportions(weights: np.ndarray) -> None:  # type: ignore[type-arg]
    fixed = sink_fix(weights)
    assert np.isfinite(fixed).all()
    assert (fixed >= 0).all()
    if len(weights) < 5:
        assert fixed is weights
        return
    total = float(weights.sum(dtype=np.float64))
    assert fixed.sum(dtype=np.float64) == pytest.approx(total, rel=1e-5, abs=1e-6)
    assert fixed[0] == pytest.approx(total / len(weights), rel=1e-6)
    rest = weights[1:].sum(dtype=np.float64)
    if rest > 1e-3:
        np.testing.assert_allclose(fixed[1:] / fixed[1:].sum(), weights[1:] / rest, rtol=1e-4, atol=1e-6)


def test_all_weight_on_the_first_token_does_not_divide_by_zero() -> None:
    np.testing.assert_allclose(sink_fix(np.array([5, 0, 0, 0, 0], np.float32)), np.ones(5))


def test_published_form() -> None:
    """On p, which sums to 1: p_0 becomes 1/n, the others are scaled by (1 − 1/n)/(1 − p_0)."""
    p = np.random.default_rng(0).dirichlet(np.ones(9))
    expected = np.concatenate([[1 / 9], p[1:] * (1 - 1 / 9) / (1 - p[0])]) * 9
    np.testing.assert_allclose(sink_fix((p * 9).astype(np.float32)), expected, rtol=1e-5)


@given(rows, st.floats(0, 1))
def test_mix_is_linear_and_ends_in_plain_dpo(weights: np.ndarray, share: float) -> None:  # type: ignore[type-arg]
    np.testing.assert_allclose(uniform_mix(weights, share), (1 - share) * weights + share, rtol=1e-5, atol=1e-6)
    assert uniform_mix(weights, 0.0) is weights
    assert uniform_mix(weights, 1.0).tolist() == [1.0] * len(weights)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("last", (29,)), ("29", (29,)), ("mean", (0, 14, 29)), ("mean:0,29", (0, 29)), ("mean:14", (14,))],
)
def test_attention_sources(text: str, expected: tuple[int, ...]) -> None:
    assert parse_attn_source(text, [14, 0, 29]) == expected


@pytest.mark.parametrize("text", ["", "mean:", "0,29", "first", "mean:a", "-1"])
def test_wrong_sources(text: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        parse_attn_source(text, [0, 29])


def test_layers_that_are_not_stored_are_named() -> None:
    with pytest.raises(UsageError, match="layer 3, 5 is not in the cache, which holds 0, 29"):
        parse_attn_source("mean:5,0,3", [0, 29])


def test_mean_is_a_mean_and_one_layer_passes_to_the_bit() -> None:
    stored = {0: np.array([0.1, 1.9], np.float32), 9: np.array([1.0, 1.0], np.float32)}
    assert select(stored, (0,)) is stored[0]
    np.testing.assert_allclose(select(stored, (0, 9)), [0.55, 1.45])


def test_mix_outside_its_range() -> None:
    with pytest.raises(UsageError, match=r"--uniform-mix 1.5"):
        uniform_mix(np.ones(2, np.float32), 1.5)
