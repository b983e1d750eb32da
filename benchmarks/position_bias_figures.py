"""Two orders of one answer beside each other, and two verdicts of one pair. `position_bias.py` prints them.

p is an answer's weights as a distribution over its tokens. Pure functions. Not for: judging, tables or pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.weights_cache.transforms import sink_fix

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How an answer's weights lie, in the order that has it at one place.

    share: of the attention row that lies on the answer at all. first: of the answer's weight, on its first token.
    effective: exp(entropy) / n, 1 for even weights. centre: the mean place, 0 for the first token, 1 for the last.
    mean_rank: rank correlation with the mean of both orders.
    """

    share: float
    first: float
    effective: float
    centre: float
    mean_rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer at one layer in both orders.

    agreement: the mass that the two orders' p share. fixed: the same after the sink fix. rank: their rank correlation
    (NaN where it is not defined). unrelated: the agreement with the other order's p, shuffled. even: the mass that
    the mean of both shares with even weights. places: its shape as answer A and as answer B.
    """

    pair: int
    layer: int
    tokens: int
    agreement: float
    fixed: float
    rank: float
    unrelated: float
    even: float
    places: tuple[Shape, Shape]


def distribution(weights: NDArray[Any]) -> Array:
    """Weights as p."""
    exact = weights.astype(np.float64)
    return np.asarray(exact / exact.sum())


def agreement(first: NDArray[Any], second: NDArray[Any]) -> float:
    """1 − total variation of two weightings of one answer."""
    return float(1.0 - np.abs(distribution(first) - distribution(second)).sum() / 2)


def ranks(values: NDArray[Any]) -> Array:
    """Ranks from 0; ties share their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[which])


def rank_correlation(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Spearman's; NaN where one of them is constant."""
    x, y = (ranks(values) - (len(values) - 1) / 2 for values in (first, second))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else float("nan")


def effective(p: Array) -> float:
    """exp(entropy) / n."""
    seen = p[p > 0]
    return float(np.exp(-(seen * np.log(seen)).sum()) / len(p))


def centre(p: Array) -> float:
    """The mean place of the weight, from 0 to 1; one half where there is one token."""
    return float(p @ np.linspace(0.0, 1.0, len(p))) if len(p) > 1 else 0.5


def shape(p: Array, mean: Array, share: float) -> Shape:
    """One order's p beside the mean of both."""
    return Shape(
        share=share,
        first=float(p[0]),
        effective=effective(p),
        centre=centre(p),
        mean_rank=rank_correlation(p, mean),
    )


def compare(
    pair: int,
    layer: int,
    weights: tuple[NDArray[np.float32], NDArray[np.float32]],
    shares: tuple[float, float],
    rng: np.random.Generator,
) -> Answer:
    """One answer's weights and shares of the row at place A and at place B."""
    at_a, at_b = (distribution(w) for w in weights)
    mean = (at_a + at_b) / 2
    fixed_a, fixed_b = (sink_fix(w) for w in weights)
    return Answer(
        pair=pair,
        layer=layer,
        tokens=len(mean),
        agreement=agreement(at_a, at_b),
        fixed=agreement(fixed_a, fixed_b),
        rank=rank_correlation(at_a, at_b),
        unrelated=agreement(at_a, rng.permutation(at_b)),
        even=agreement(mean, np.ones(len(mean))),
        places=(shape(at_a, mean, shares[0]), shape(at_b, mean, shares[1])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """P(verdict A) of each pair when the chosen answer stood at A ("cr"), and when it stood at B ("rc")."""

    cr: Array
    rc: Array

    @property
    def figures(self) -> dict[str, float]:
        """Shares of the pairs; a flip is a pair in which the same place wins in both orders."""
        first, second = self.cr > 0.5, self.rc > 0.5
        mean_chosen = (self.cr + 1.0 - self.rc) / 2
        return {
            "mean P(A)": float(np.mean([self.cr, self.rc])),
            "verdict A, of all prompts": float(np.mean([first, second])),
            "verdict flips with the order": float(np.mean(first == second)),
            "A in both orders": float(np.mean(first & second)),
            "B in both orders": float(np.mean(~first & ~second)),
            "chosen preferred, chosen at A": float(np.mean(first)),
            "chosen preferred, chosen at B": float(np.mean(~second)),
            "chosen preferred, mean of both orders": float(np.mean(mean_chosen > 0.5)),
            "correlation of P(chosen) between the orders": float(np.corrcoef(self.cr, 1 - self.rc)[0, 1]),
        }


def interval(values: Sequence[float], pairs: Sequence[int], *, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the mean, whole pairs drawn; the two answers of a pair are not independent."""
    rng = np.random.default_rng(0)
    _, which = np.unique(pairs, return_inverse=True)
    sums, counts = np.bincount(which, weights=values), np.bincount(which)
    drawn = rng.integers(len(sums), size=(draws, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
