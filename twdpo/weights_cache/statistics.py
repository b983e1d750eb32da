"""What a cache's weights look like as a whole: one pass over its rows, in memory that does not grow with the cache.

Not for: how the figures are shown (`card.py`, the commands), or single examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from twdpo.errors import CacheError
from twdpo.weights_cache.reader import WeightsCache
from twdpo.weights_cache.rows import WeightRow
from twdpo.weights_cache.transforms import SINK_FIX_MIN_TOKENS

#: Rows summed at a time: as many as a row group holds.
_BATCH = 512

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """Figures over all pairs of a cache, for one layer.

    tokens: judged tokens of both sides. judge_accuracy_*: how often the judge gave the chosen answer more than half,
    in each order and by the mean of both. position_bias: mean probability of answer A less one half, over both
    orders. order_agreement: mass that the two orders share, mean. effective_share: exponential of the entropy, as a
    share of the length, mean. first_weight, first_weight_fixed: mean weight of the first token, before and after
    the sink fix. deciles: mean weight by tenth of the answer, float[10]. NaN where no row has such a figure; rows
    without one do not count in its mean.
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


def effective_tokens(weights: npt.NDArray[np.float32]) -> float:
    """The exponential of the entropy of weights float32[n]: n where all are equal, 1 where one has all the mass."""
    return float(_effective(weights.astype(np.float64), np.zeros(1, dtype=np.int64))[0])


def summarize(cache: WeightsCache, layer: int | None = None) -> CacheSummary:
    """The summary of a cache, for `layer` or the deepest stored one. Raises CacheError where it holds no pairs."""
    layer = cache.layers[-1] if layer is None else layer
    if layer not in cache.layers:
        raise CacheError(f"layer {layer} is not in the cache, which holds {', '.join(map(str, cache.layers))}")
    verdicts, sides, counts = _Means(), _Means(), np.zeros(3, dtype=np.int64)
    decile_sums, decile_counts = np.zeros(10), np.zeros(10)
    rows = cache.rows()
    while batch := list(islice(rows, _BATCH)):
        weights = [side.weights[layer] for row in batch for side in (row.chosen, row.rejected)]
        lengths = np.array([len(each) for each in weights])
        flat = np.concatenate(weights).astype(np.float64)
        starts = np.cumsum(lengths) - lengths
        counts += len(batch), len(flat), sum(row.truncated for row in batch)
        verdicts.add(_verdicts(batch))
        sides.add(_side_figures(flat, starts, lengths))
        decile = (np.arange(len(flat)) - np.repeat(starts, lengths)) * 10 // np.repeat(lengths, lengths)
        decile_sums += np.bincount(decile, weights=flat, minlength=10)
        decile_counts += np.bincount(decile, minlength=10)
    pairs, tokens, truncated = counts.tolist()
    if not pairs:
        raise CacheError("the cache holds no pairs yet; run twdpo annotate first")
    return CacheSummary(
        pairs=pairs,
        tokens=tokens,
        truncated=truncated,
        layer=layer,
        deciles=tuple((decile_sums / np.maximum(decile_counts, 1)).tolist()),
        **verdicts.means(),
        **sides.means(),
    )


class _Means:
    """Means of several figures over values that come in batches; NaN stands for no value."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, figures: dict[str, Doubles]) -> None:
        for name, values in figures.items():
            known = values[~np.isnan(values)]
            self._sums[name] = self._sums.get(name, 0.0) + float(known.sum())
            self._counts[name] = self._counts.get(name, 0) + len(known)

    def means(self) -> dict[str, float]:
        return {
            name: total / self._counts[name] if self._counts[name] else math.nan for name, total in self._sums.items()
        }


def _verdicts(rows: Sequence[WeightRow]) -> dict[str, Doubles]:
    """What the judge thought of each pair."""
    cr = np.array([row.judge_prob_cr for row in rows], dtype=np.float64)
    rc = np.array([row.judge_prob_rc for row in rows], dtype=np.float64)
    agreement = np.array([row.order_agreement_chosen + row.order_agreement_rejected for row in rows], dtype=np.float64)
    return {
        "judge_accuracy_cr": _above(cr, 0.5),
        "judge_accuracy_rc": _above(rc, 0.5),
        "judge_accuracy": _above(cr + rc, 1.0),
        # Answer A is the chosen one in order cr, the rejected one in order rc.
        "position_bias": (cr + (1.0 - rc)) / 2 - 0.5,
        "order_agreement": agreement / 2,
    }


def _above(values: Doubles, bound: float) -> Doubles:
    return np.where(np.isnan(values), np.nan, values > bound)


def _side_figures(flat: Doubles, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> dict[str, Doubles]:
    """Figures of each answer; `flat` holds the weights of one after another, each from its entry in `starts` on."""
    first = flat[starts]
    mean = np.add.reduceat(flat, starts) / lengths
    return {
        "effective_share": _effective(flat, starts) / lengths,
        "first_weight": first,
        "first_weight_fixed": np.where(lengths < SINK_FIX_MIN_TOKENS, first, mean),
    }


def _effective(flat: Doubles, starts: npt.NDArray[np.int64]) -> Doubles:
    lengths = np.diff(np.append(starts, len(flat)))
    p = flat / np.repeat(np.add.reduceat(flat, starts), lengths)
    terms = p * np.log(p, out=np.zeros_like(p), where=p > 0)
    return np.exp(-np.add.reduceat(terms, starts))
