"""From raw attention to token weights: pure functions, no model.

p_t = a_t / Σ a over an answer's own tokens, the mean of the two orders, w_t = n · p_t.
Not for: reading attention (`engines`) or the sink fix, which is applied when weights are read
(`twdpo.weights_cache.transforms`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def distribution(attention: Floats) -> NDArray[np.float64]:
    """Raw attention float32[n] as a distribution over the answer's tokens; uniform where it is zero throughout."""
    exact = attention.astype(np.float64)
    total = exact.sum()
    return exact / total if total > 0 else np.full(len(exact), 1.0 / len(exact))


def combine_orders(first: Floats, second: Floats) -> Floats:
    """Weights float32[n] with mean 1 from the raw attention of both orders, float32[n] each."""
    p = (distribution(first) + distribution(second)) / 2
    return (len(p) * p).astype(np.float32)


def order_agreement(first: Floats, second: Floats) -> float:
    """How well the two orders agree: the mass that their distributions share, 1 − total variation, from 0 to 1."""
    return float(1.0 - np.abs(distribution(first) - distribution(second)).sum() / 2)


def verdict_probability(logit_a: float, logit_b: float) -> float:
    """The probability of verdict A among A and B."""
    return float(1.0 / (1.0 + np.exp(np.clip(logit_b - logit_a, -700.0, 700.0))))
