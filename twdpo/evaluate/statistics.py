"""Figures with bootstrap confidence intervals, in numpy: means, accuracies, ratios, and paired differences of them.

A statistic is a function of columns, one entry a pair in the last axis, that leaves that axis out: so one line serves
the sample itself and thousands of resamples at a time. Not for: where the columns come from (`heldout.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Statistic = Callable[..., Floats]

RESAMPLES = 10_000
LEVEL = 0.95
#: Entries of a block of resamples: 2^21 indices and as many values a column.
_BLOCK = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure, and the interval that holds the middle `level` of its bootstrap resamples; NaN where there is none.

    count: pairs that it is of.
    """

    value: float
    low: float
    high: float
    count: int

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what is not there is null."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        return {name: x if math.isfinite(x) else None for name, x in numbers.items()} | {"count": self.count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """How intervals are made: pairs drawn with replacement, the percentiles of the statistic over the draws.

    The same seed and number of pairs give the same draws, whatever the statistic.
    """

    resamples: int = RESAMPLES
    level: float = LEVEL
    seed: int = 0

    def estimate(self, statistic: Statistic, *columns: ArrayLike) -> Estimate:
        """A statistic of columns of equal length, each with one entry a pair. NaN throughout for no pairs."""
        arrays = _columns(columns)
        count = len(arrays[0])
        if count == 0:
            return Estimate(value=math.nan, low=math.nan, high=math.nan, count=0)
        draws = np.sort(self._draws(statistic, arrays))
        known = draws[np.isfinite(draws)]
        low, high = _percentiles(known, self.level)
        value = float(statistic(*(array[None] for array in arrays))[0])
        return Estimate(value=value, low=low, high=high, count=count)

    def mean(self, values: ArrayLike) -> Estimate:
        """The mean."""
        return self.estimate(mean, values)

    def difference(self, statistic: Statistic, here: Sequence[ArrayLike], there: Sequence[ArrayLike]) -> Estimate:
        """A statistic of `here` less that of `there`, both over the same pairs: each draw takes the same from both."""
        half = len(here)

        def both(*columns: Floats) -> Floats:
            return statistic(*columns[:half]) - statistic(*columns[half:])

        return self.estimate(both, *here, *there)

    def mean_difference(self, here: ArrayLike, there: ArrayLike) -> Estimate:
        """The mean of `here` less that of `there`, both over the same pairs."""
        return self.difference(mean, [here], [there])

    def _draws(self, statistic: Statistic, arrays: Sequence[Floats]) -> Floats:
        count, rng = len(arrays[0]), np.random.default_rng(self.seed)
        step, found = max(1, _BLOCK // count), []
        for start in range(0, self.resamples, step):
            drawn = rng.integers(0, count, (min(step, self.resamples - start), count))
            found.append(statistic(*(array[drawn] for array in arrays)))
        return np.concatenate(found)


def mean(values: Floats) -> Floats:
    """Over the pairs."""
    means: Floats = values.mean(-1)
    return means


def ratio(numerators: Floats, denominators: Floats) -> Floats:
    """Sum over sum, such as nats over tokens; NaN over nothing."""
    return _divide(numerators.sum(-1), denominators.sum(-1))


def is_right(margins: ArrayLike) -> Floats:
    """1 where a margin is above 0, ½ where it is 0, as it is throughout for a policy that is the reference."""
    margins = np.asarray(margins, np.float64)
    return np.where(np.isnan(margins), np.nan, (margins > 0) + 0.5 * (margins == 0))


def is_longer(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """1 where the chosen answer is the longer one, ½ where both are equally long."""
    return is_right(np.asarray(chosen, np.float64) - np.asarray(rejected, np.float64))


def length_controlled(right: Floats, longer: Floats) -> Floats:
    """The mean of two accuracies: over pairs whose chosen answer is the longer one, and over those where it is shorter.

    Pairs of equal length count half in each. A policy that only prefers long answers, or short ones, gets ½, however
    many of the chosen answers are long. NaN where all chosen answers are longer, or all are shorter.
    """
    return (accuracy_longer(right, longer) + accuracy_shorter(right, longer)) / 2


def accuracy_longer(right: Floats, longer: Floats) -> Floats:
    """The accuracy over pairs whose chosen answer is the longer one."""
    return _divide((longer * right).sum(-1), longer.sum(-1))


def accuracy_shorter(right: Floats, longer: Floats) -> Floats:
    """The accuracy over pairs whose chosen answer is the shorter one."""
    return accuracy_longer(right, 1.0 - longer)


def _divide(numerators: Floats, denominators: Floats) -> Floats:
    there = denominators > 0
    return np.where(there, numerators / np.where(there, denominators, 1.0), np.nan)


def _columns(columns: Sequence[ArrayLike]) -> list[Floats]:
    arrays = [np.asarray(column, np.float64) for column in columns]
    if not arrays or any(array.ndim != 1 or len(array) != len(arrays[0]) for array in arrays):
        raise ValueError("columns must be one-dimensional and equally long")
    return arrays


def _percentiles(draws: Floats, level: float) -> tuple[float, float]:
    if not len(draws):
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
