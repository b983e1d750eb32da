"""Figures over a cache, against sums over single rows. What a few rows give by hand: `test_summary.py`."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.weights_cache.samples import RECIPE, fill, make_row
from twdpo.weights_cache import CacheWriter, WeightRow, WeightsCache, statistics
from twdpo.weights_cache.statistics import effective_tokens, summarize
from twdpo.weights_cache.transforms import sink_fix


def rows_of(folder: Path) -> list[WeightRow]:
    with WeightsCache.open(folder) as cache:
        return list(cache.rows())


@pytest.mark.parametrize("batch", [1, 4, 512])
@pytest.mark.parametrize("layer", [0, 29])
def test_batches_of_any_size_give_the_sums_over_single_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, layer: int
) -> None:
    fill(tmp_path, range(15))
    monkeypatch.setattr(statistics, "_BATCH", batch)
    with WeightsCache.open(tmp_path) as cache:
        summary = summarize(cache, layer)
    sides = [row.side(name).weights[layer] for row in rows_of(tmp_path) for name in ("chosen", "rejected")]
    assert summary.pairs == 15
    assert summary.tokens == sum(map(len, sides))
    assert summary.first_weight == pytest.approx(np.mean([side[0] for side in sides]))
    assert summary.first_weight_fixed == pytest.approx(np.mean([sink_fix(side)[0] for side in sides]), rel=1e-4)
    shares = []
    for side in sides:
        p = side[side > 0].astype(np.float64) / side.sum(dtype=np.float64)
        shares.append(math.exp(-(p * np.log(p)).sum()) / len(side))
    assert summary.effective_share == pytest.approx(np.mean(shares))
    tenths: list[list[float]] = [[] for _ in range(10)]
    for side in sides:
        for place, weight in enumerate(side.tolist()):
            tenths[place * 10 // len(side)].append(weight)
    assert summary.deciles == pytest.approx([np.mean(tenth) for tenth in tenths])


def test_a_hash_that_stands_twice_counts_once(tmp_path: Path) -> None:
    fill(tmp_path / "a", range(4))
    fill(tmp_path / "b", range(2, 6))
    for shard in (tmp_path / "b" / "data").iterdir():
        shard.rename(tmp_path / "a" / "data" / shard.name)
    with WeightsCache.open(tmp_path / "a") as cache:
        assert summarize(cache).pairs == 6


def test_rows_without_a_figure_do_not_count_in_its_mean(tmp_path: Path) -> None:
    nan = float("nan")
    judged = replace(make_row(1), judge_prob_cr=0.9, judge_prob_rc=0.7)
    with CacheWriter.open(tmp_path / "some", RECIPE) as writer:
        writer.add(judged)
        writer.add(replace(make_row(2), judge_prob_cr=nan, judge_prob_rc=nan))
    with WeightsCache.open(tmp_path / "some") as cache:
        summary = summarize(cache)
    assert summary.pairs == 2
    assert (summary.judge_accuracy_cr, summary.judge_accuracy_rc, summary.judge_accuracy) == (1.0, 1.0, 1.0)
    assert summary.position_bias == pytest.approx((0.9 + 0.3) / 2 - 0.5)
    assert math.isnan(summary.order_agreement)
    assert summary.effective_share > 0


def test_one_side_gives_what_a_cache_of_it_gives() -> None:
    assert effective_tokens(np.ones(7, np.float32)) == pytest.approx(7)
    assert effective_tokens(np.array([0, 3, 0], np.float32)) == pytest.approx(1)
