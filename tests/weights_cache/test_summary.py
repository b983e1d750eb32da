"""Figures over a cache, against what a few rows give by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from twdpo.errors import CacheError
from twdpo.weights_cache import CacheWriter, Recipe, SideWeights, WeightRow, WeightsCache
from twdpo.weights_cache.statistics import effective_tokens, summarize


def side(weights: list[float]) -> SideWeights:
    places = np.arange(len(weights), dtype=np.int32)
    return SideWeights(starts=places, ends=places + 1, weights={3: np.asarray(weights, np.float32)})


def row(number: int, chosen: list[float], rejected: list[float], cr: float, rc: float) -> WeightRow:
    return WeightRow(
        example_hash=f"{number:032x}",
        chosen=side(chosen),
        rejected=side(rejected),
        judge_prob_cr=cr,
        judge_prob_rc=rc,
        attention_share_chosen=0.1,
        attention_share_rejected=0.1,
        order_agreement_chosen=0.8,
        order_agreement_rejected=0.6,
        truncated=number == 1,
    )


def recipe() -> Recipe:
    return Recipe(
        judge_model="m",
        judge_revision=None,
        dtype="float32",
        judge_template="t",
        chat_template_hash=None,
        max_length=64,
        layers=(3,),
    )


def test_summary_by_hand(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path / "c", recipe()) as writer:
        writer.add(row(0, [1.0] * 10, [2.0, 0.0], cr=0.9, rc=0.7))
        writer.add(row(1, [3.0, 0.5, 0.5, 0.5, 0.5], [1.0], cr=0.8, rc=0.1))
    with WeightsCache.open(tmp_path / "c") as cache:
        summary = summarize(cache)
    assert (summary.pairs, summary.tokens, summary.truncated, summary.layers) == (2, 18, 1, (3,))
    assert (summary.judge_accuracy_cr, summary.judge_accuracy_rc, summary.judge_accuracy) == (1.0, 0.5, 0.5)
    assert (summary.both_right, summary.both_wrong, summary.verdict_flips) == (0.5, 0.0, 0.5)
    # Probability of answer A: 0.9 and 0.3 in the first pair, 0.8 and 0.9 in the second.
    assert summary.position_bias == pytest.approx((0.6 + 0.85) / 2 - 0.5)
    assert summary.order_agreement == pytest.approx(0.7)
    assert summary.first_weight == pytest.approx((1 + 2 + 3 + 1) / 4)
    assert summary.first_weight_fixed == pytest.approx((1 + 2 + 1 + 1) / 4)
    assert len(summary.deciles) == 10
    with WeightsCache.open(tmp_path / "c") as cache, pytest.raises(CacheError, match="layer 9 is not in the cache"):
        summarize(cache, 9)


def test_effective_tokens() -> None:
    assert effective_tokens(np.ones(7, np.float32)) == pytest.approx(7)
    assert effective_tokens(np.array([4, 0, 0, 0], np.float32)) == pytest.approx(1)
    half = effective_tokens(np.array([1.5, 0.5], np.float32))
    assert half == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))


def test_an_empty_cache_is_said(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path / "c", recipe()):
        pass
    with WeightsCache.open(tmp_path / "c") as cache, pytest.raises(CacheError, match="holds no pairs yet"):
        summarize(cache)
