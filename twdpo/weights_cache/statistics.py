"""What a cache's weights look like as a whole: one pass over its rows, in memory that does not grow with the cache.

Not for: how the figures are shown (`card.py`, the commands), or single examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twdpo.errors import CacheError
from twdpo.weights_cache.reader import WeightsCache
from twdpo.weights_cache.schema import SIDES, weights_column
from twdpo.weights_cache.shards import Block
from twdpo.weights_cache.transforms import SINK_FIX_MIN_TOKENS, source_name

_VERDICTS = ("judge_prob_cr", "judge_prob_rc", "order_agreement_chosen", "order_agreement_rejected")
_FIGURES = (*_VERDICTS, "truncated")

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSummary:
    """Figures over all pairs of a cache, for one layer or the mean of some.

    tokens: judged tokens of both sides. judge_accuracy_*: how often the judge gave the chosen answer more than half,
    in each order and by the mean of both. both_right, both_wrong, verdict_flips: how often it did so in both orders, in
    none, in one only; their sum is 1. position_bias: mean probability of answer A less one half, over both orders.
    order_agreement: mass that the two orders share, mean. effective_share: exponential of the entropy, as a share of
    the length, mean over answers; effective_share_p10, _p50 and _p90: its deciles and median, to 0.001.
    first_weight, first_weight_fixed: mean weight of the first token, before and after the sink fix. deciles: mean
    weight by tenth of the answer, float[10]. NaN where no row has such a figure; rows without one do not count in its
    mean.
    """

    pairs: int
    tokens: int
    truncated: int
    layers: tuple[int, ...]
    judge_accuracy_cr: float
    judge_accuracy_rc: float
    judge_accuracy: float
    both_right: float
    both_wrong: float
    verdict_flips: float
    position_bias: float
    order_agreement: float
    effective_share: float
    effective_share_p10: float
    effective_share_p50: float
    effective_share_p90: float
    first_weight: float
    first_weight_fixed: float
    deciles: tuple[float, ...]

    @property
    def attn_source(self) -> str:
        """The layers as a person calls them."""
        return source_name(self.layers)


def effective_tokens(weights: npt.NDArray[np.float32]) -> float:
    """The exponential of the entropy of weights float32[n]: n where all are equal, 1 where one has all the mass."""
    return float(_effective(weights.astype(np.float64), np.zeros(1, dtype=np.int64))[0])


def summarize(cache: WeightsCache, layers: int | Sequence[int] | None = None) -> CacheSummary:
    """The summary of a cache, for one layer, the mean of several, or the deepest stored one.

    Reads the columns of those layers only. Raises CacheError where they are not stored, or the cache holds no pairs.
    """
    wanted = _wanted(cache, layers)
    verdicts, sides, shares = _Means(), _Means(), _Histogram()
    counts = np.zeros(3, dtype=np.int64)
    decile_sums, decile_counts = np.zeros(10), np.zeros(10)
    columns = [weights_column(side, layer) for side in SIDES for layer in wanted]
    for block, rows in cache.blocks([*columns, *_FIGURES]):
        counts[0] += len(rows)
        counts[2] += sum(block.entries("truncated", rows, copy=False))
        verdicts.add(_verdicts(*(np.array(block.entries(name, rows, copy=False)) for name in _VERDICTS)))
        for side in SIDES:
            flat, lengths = _weights(block, rows, [weights_column(side, layer) for layer in wanted])
            starts = np.cumsum(lengths) - lengths
            counts[1] += len(flat)
            share = _effective(flat, starts) / lengths
            shares.add(share)
            sides.add({"effective_share": share, **_first_weights(flat, starts, lengths)})
            tenths = (np.arange(len(flat)) - np.repeat(starts, lengths)) * 10 // np.repeat(lengths, lengths)
            decile_sums += np.bincount(tenths, weights=flat, minlength=10)
            decile_counts += np.bincount(tenths, minlength=10)
    pairs, tokens, truncated = counts.tolist()
    if not pairs:
        raise CacheError(f"{cache.folder} holds no pairs yet; run twdpo annotate first")
    low, median, high = shares.quantiles(0.1, 0.5, 0.9)
    return CacheSummary(
        pairs=pairs,
        tokens=tokens,
        truncated=truncated,
        layers=wanted,
        effective_share_p10=low,
        effective_share_p50=median,
        effective_share_p90=high,
        deciles=tuple((decile_sums / np.maximum(decile_counts, 1)).tolist()),
        **verdicts.means(),
        **sides.means(),
    )


def _wanted(cache: WeightsCache, layers: int | Sequence[int] | None) -> tuple[int, ...]:
    if layers is None:
        return cache.layers[-1:]
    wanted = (layers,) if isinstance(layers, int) else tuple(layers)
    for layer in wanted:
        if layer not in cache.layers:
            raise CacheError(f"layer {layer} is not in the cache, which holds {', '.join(map(str, cache.layers))}")
    return wanted


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


class _Histogram:
    """Counts of values from 0 to 1, for quantiles to within a bin without keeping the values."""

    _BINS = 1000

    def __init__(self) -> None:
        self._counts = np.zeros(self._BINS, dtype=np.int64)

    def add(self, values: Doubles) -> None:
        places = (values * self._BINS).astype(np.int64).clip(0, self._BINS - 1)
        self._counts += np.bincount(places, minlength=self._BINS)

    def quantiles(self, *shares: float) -> list[float]:
        """The middle of the bin in which each quantile lies; for the last bin its end, where equal weights lie."""
        places = np.searchsorted(np.cumsum(self._counts), np.array(shares) * self._counts.sum())
        return [1.0 if place == self._BINS - 1 else (place + 0.5) / self._BINS for place in places.tolist()]


def _weights(
    block: Block, rows: npt.NDArray[np.int64], columns: Sequence[str]
) -> tuple[Doubles, npt.NDArray[np.int64]]:
    """The weights of one side of some rows one after another, mean over `columns`, and how many each row has."""
    flats = []
    for column in columns:
        offsets, values = block.lists(column)
        if len(rows) == block.rows:
            flats.append(values[offsets[0] : offsets[-1]])
        else:
            flats.append(np.concatenate(block.entries(column, rows, copy=False)))
    lengths = (offsets[rows + 1] - offsets[rows]).astype(np.int64)
    if len(flats) == 1:
        return flats[0].astype(np.float64), lengths
    mean: Doubles = np.mean(flats, axis=0, dtype=np.float64)
    return mean, lengths


def _verdicts(cr: Doubles, rc: Doubles, agreement_chosen: Doubles, agreement_rejected: Doubles) -> dict[str, Doubles]:
    """What the judge thought of each pair."""
    right_cr, right_rc = _above(cr, 0.5), _above(rc, 0.5)
    return {
        "judge_accuracy_cr": right_cr,
        "judge_accuracy_rc": right_rc,
        "judge_accuracy": _above(cr + rc, 1.0),
        "both_right": right_cr * right_rc,
        "both_wrong": (1.0 - right_cr) * (1.0 - right_rc),
        "verdict_flips": np.abs(right_cr - right_rc),
        # Answer A is the chosen one in order cr, the rejected one in order rc.
        "position_bias": (cr + (1.0 - rc)) / 2 - 0.5,
        "order_agreement": (agreement_chosen + agreement_rejected) / 2,
    }


def _above(values: Doubles, bound: float) -> Doubles:
    return np.where(np.isnan(values), np.nan, values > bound)


def _first_weights(flat: Doubles, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> dict[str, Doubles]:
    """Each answer's first weight; `flat` holds the weights of one after another, each from its entry in `starts` on."""
    first = flat[starts]
    mean = np.add.reduceat(flat, starts) / lengths
    return {"first_weight": first, "first_weight_fixed": np.where(lengths < SINK_FIX_MIN_TOKENS, first, mean)}


def _effective(flat: Doubles, starts: npt.NDArray[np.int64]) -> Doubles:
    lengths = np.diff(np.append(starts, len(flat)))
    totals = np.add.reduceat(flat, starts)
    # Entropy of w / S is log S less the mean of log w under it.
    terms = flat * np.log(flat, out=np.zeros_like(flat), where=flat > 0)
    found: Doubles = np.exp(np.log(totals) - np.add.reduceat(terms, starts) / totals)
    return found.clip(1.0, lengths)
