"""What a cache's weights look like as a whole: one pass over its rows, constant memory.

Not for: single examples (`terminal.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import CacheError
from twdpo.weights_cache import WeightsCache
from twdpo.weights_cache.transforms import sink_fix


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """Figures over all pairs of a cache, for one layer.

    tokens: judged tokens of both sides. judge_accuracy_*: how often the judge gave the chosen answer more than half,
    in each order and by the mean of both. position_bias: mean probability of answer A less one half, over both
    orders. order_agreement: mass that the two orders share, mean. effective_share: exponential of the entropy, as a
    share of the length, mean. first_weight, first_weight_fixed: mean weight of the first token, before and after
    the sink fix. deciles: mean weight by tenth of the answer, float[10].
    """

    pairs: int
    tokens: int
    truncated: int
    layer: int
    judge_accuracy_cr: float
    judge_accuracy_rc: float
    judge_accuracy: float
    position_bias: float
    order_agreement: float
    effective_share: float
    first_weight: float
    first_weight_fixed: float
    deciles: tuple[float, ...]


def effective_tokens(weights: NDArray[np.float32]) -> float:
    """The exponential of the entropy of weights float32[n]: n where all are equal, 1 where one has all the mass."""
    p = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    p = p[p > 0]
    return math.exp(float(-(p * np.log(p)).sum()))


def summarize(cache: WeightsCache, layer: int | None = None) -> CacheSummary:
    """The summary of a cache, for `layer` or the deepest stored one. Raises CacheError where it holds no pairs."""
    layer = cache.layers[-1] if layer is None else layer
    if layer not in cache.layers:
        raise CacheError(f"layer {layer} is not in the cache, which holds {', '.join(map(str, cache.layers))}")
    sums: dict[str, float] = dict.fromkeys(
        ("tokens", "truncated", "cr", "rc", "both", "bias", "agreement", "share", "first", "fixed"), 0.0
    )
    decile_sums, decile_counts = np.zeros(10), np.zeros(10)
    pairs = 0
    for row in cache.rows():
        pairs += 1
        sums["truncated"] += row.truncated
        sums["cr"] += row.judge_prob_cr > 0.5
        sums["rc"] += row.judge_prob_rc > 0.5
        sums["both"] += row.judge_prob_cr + row.judge_prob_rc > 1.0
        # Answer A is the chosen one in order cr, the rejected one in order rc.
        sums["bias"] += (row.judge_prob_cr + (1.0 - row.judge_prob_rc)) / 2 - 0.5
        sums["agreement"] += (row.order_agreement_chosen + row.order_agreement_rejected) / 2
        for side in (row.chosen, row.rejected):
            weights = side.weights[layer]
            n = len(weights)
            sums["tokens"] += n
            sums["share"] += effective_tokens(weights) / n / 2
            sums["first"] += float(weights[0]) / 2
            sums["fixed"] += float(sink_fix(weights)[0]) / 2
            decile = np.arange(n) * 10 // n
            decile_sums += np.bincount(decile, weights=weights, minlength=10)
            decile_counts += np.bincount(decile, minlength=10)
    if not pairs:
        raise CacheError("the cache holds no pairs yet; run twdpo annotate first")
    return CacheSummary(
        pairs=pairs,
        tokens=int(sums["tokens"]),
        truncated=int(sums["truncated"]),
        layer=layer,
        judge_accuracy_cr=sums["cr"] / pairs,
        judge_accuracy_rc=sums["rc"] / pairs,
        judge_accuracy=sums["both"] / pairs,
        position_bias=sums["bias"] / pairs,
        order_agreement=sums["agreement"] / pairs,
        effective_share=sums["share"] / pairs,
        first_weight=sums["first"] / pairs,
        first_weight_fixed=sums["fixed"] / pairs,
        deciles=tuple((decile_sums / np.maximum(decile_counts, 1)).tolist()),
    )
