"""Figures over a cache, against sums over single rows. What a few rows give by hand: `test_summary.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.weights_cache.samples import RECIPE, fill, make_row
from twdpo.weights_cache import CacheWriter, WeightRow, WeightsCache
from twdpo.weights_cache.index import Decoded, ShardIndex
from twdpo.weights_cache.statistics import effective_tokens, summarize
from twdpo.weights_cache.transforms import sink_fix


def rows_of(folder: Path) -> list[WeightRow]:
    with WeightsCache.open(folder) as cache:
        return list(cache.rows())


@pytest.mark.parametrize("shard_rows", [1, 4, 512])
@pytest.mark.parametrize("layers", [(0,), (29,), (0, 29)], ids=str)
def test_blocks_of_any_size_give_the_sums_over_single_rows(
    tmp_path: Path, shard_rows: int, layers: tuple[int, ...]
) -> None:
    fill(tmp_path, range(15), shard_rows=shard_rows)
    with WeightsCache.open(tmp_path) as cache:
        summary = summarize(cache, layers)
    sides = [
        np.mean([row.side(name).weights[layer] for layer in layers], axis=0, dtype=np.float64).astype(np.float32)
        for row in rows_of(tmp_path)
        for name in ("chosen", "rejected")
    ]
    assert summary.pairs == 15
    assert summary.layers == layers
    assert summary.tokens == sum(map(len, sides))
    assert summary.first_weight == pytest.approx(np.mean([side[0] for side in sides]))
    assert summary.first_weight_fixed == pytest.approx(np.mean([sink_fix(side)[0] for side in sides]), rel=1e-4)
    shares = []
    for side in sides:
        p = side[side > 0].astype(np.float64) / side.sum(dtype=np.float64)
        shares.append(math.exp(-(p * np.log(p)).sum()) / len(side))
    assert summary.effective_share == pytest.approx(np.mean(shares))
    found = (summary.effective_share_p10, summary.effective_share_p50, summary.effective_share_p90)
    for share, value in zip((0.1, 0.5, 0.9), found, strict=True):
        # Some share of the values lie below, to within a bin of the histogram.
        assert np.mean(np.array(shares) < value - 0.001) <= share <= np.mean(np.array(shares) <= value + 0.001)
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
        summary = summarize(cache)
        tokens = [len(row.chosen) + len(row.rejected) for row in cache.rows()]
    assert (summary.pairs, summary.tokens) == (6, sum(tokens))


def test_verdicts_in_both_orders_at_once(tmp_path: Path) -> None:
    verdicts = [(0.9, 0.8), (0.9, 0.2), (0.1, 0.6), (0.2, 0.3), (0.4, 0.1)]
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        for number, (cr, rc) in enumerate(verdicts):
            writer.add(replace(make_row(number), judge_prob_cr=cr, judge_prob_rc=rc))
    with WeightsCache.open(tmp_path) as cache:
        summary = summarize(cache)
    assert summary.both_right == pytest.approx(0.2)
    assert summary.both_wrong == pytest.approx(0.4)
    assert summary.verdict_flips == pytest.approx(0.4)


def test_equal_weights_are_all_effective(tmp_path: Path) -> None:
    even = {layer: np.ones(7, np.float32) for layer in RECIPE.layers}
    row = make_row(1)
    places = np.arange(7, dtype=np.int32)
    side = replace(row.chosen, starts=places, ends=places + 1, weights=even)
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        writer.add(replace(row, chosen=side, rejected=side))
    with WeightsCache.open(tmp_path) as cache:
        summary = summarize(cache)
    assert summary.effective_share == pytest.approx(1)
    assert (summary.effective_share_p10, summary.effective_share_p50, summary.effective_share_p90) == (1.0, 1.0, 1.0)
    # Seven tokens lie in seven of the tenths.
    assert sorted(summary.deciles) == [0.0] * 3 + [1.0] * 7


def test_only_the_columns_of_the_layer_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(6), text=True)
    asked: list[str] = []
    decode = ShardIndex.decode

    def spy(self: ShardIndex, unit: int, span: int = 1, columns: Sequence[str] | None = None) -> Decoded:
        asked.extend(columns or ["everything"])
        return decode(self, unit, span, columns)

    monkeypatch.setattr(ShardIndex, "decode", spy)
    with WeightsCache.open(tmp_path) as cache:
        summarize(cache, 3)
    weights = {"chosen_weights_3", "rejected_weights_3"}
    assert set(asked) - weights == {
        "judge_prob_cr",
        "judge_prob_rc",
        "order_agreement_chosen",
        "order_agreement_rejected",
        "truncated",
    }


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
