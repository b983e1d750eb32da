"""Weights of one answer moved about: permuted, or drawn anew from their own distribution. Pure functions.

Of attention the first token keeps its weight (`kept`: 1). Attention collects on it for no reason of content, and stage
two's sink fix gives it the mean weight; moved into the text, that heap would be a peak there which the attention arm
does not have, and the fix would then flatten a token of ordinary weight. So what is compared is the rest, before the
fix and after it alike. Weights without a sink are moved all of them (`kept`: 0).

Randomness comes as bits of PCG64, whose stream numpy promises to keep; that of its permutations it does not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from twdpo.weights_cache.mantissa import round_mantissa

Floats = NDArray[np.float32]


def random_bits(n: int, *, seed: int, example_hash: str, side: str) -> NDArray[np.uint64]:
    """n random words of 64 bits, which follow from `seed`, the pair and the side alone."""
    digest = hashlib.sha256(f"{seed} {example_hash} {side}".encode()).digest()
    words = np.frombuffer(digest, dtype="<u4")
    return np.atleast_1d(np.random.PCG64(words.tolist()).random_raw(n)).astype(np.uint64)


def permutation(n: int, bits: NDArray[np.uint64], kept: int) -> NDArray[np.int64]:
    """A permutation int64[n] of 0 to n − 1 that leaves the first `kept` where they are; bits: uint64[n]."""
    order = np.argsort(bits[kept:], kind="stable") + kept
    return np.concatenate([np.arange(min(n, kept)), order])


def draws(n: int, bits: NDArray[np.uint64], kept: int) -> NDArray[np.int64]:
    """The first `kept`, then independent draws from those behind, with replacement, int64[n]; bits: uint64[n]."""
    unit = (bits[kept:] >> np.uint64(11)).astype(np.float64) * 2.0**-53
    drawn = kept + np.floor(unit * (n - kept)).astype(np.int64)
    return np.concatenate([np.arange(min(n, kept)), drawn])


def shuffled(weights: Mapping[int, Floats], bits: NDArray[np.uint64], kept: int) -> dict[int, Floats]:
    """All layers of one answer, float32[n] each, under one permutation: the same weights on other tokens."""
    order = permutation(len(bits), bits, kept)
    return {layer: values[order] for layer, values in weights.items()}


def resampled(weights: Mapping[int, Floats], bits: NDArray[np.uint64], kept: int) -> dict[int, Floats]:
    """All layers of one answer, each token given the weight of a token drawn at random, the same in every layer.

    What is drawn is scaled so that the sum is kept; where it is zero throughout, it is spread evenly.
    """
    drawn = draws(len(bits), bits, kept)
    return {layer: _keep_sum(values, drawn, kept) for layer, values in weights.items()}


def _keep_sum(values: Floats, drawn: NDArray[np.int64], kept: int) -> Floats:
    # As they are stored, so that reworking a cache gives what judging anew gives.
    exact = round_mantissa(values).astype(np.float64)
    rest, fresh = exact[kept:].sum(), exact[drawn[kept:]]
    total = fresh.sum()
    fresh = fresh * (rest / total) if total > 0 else np.full(len(fresh), rest / max(len(fresh), 1))
    return np.concatenate([exact[:kept], fresh]).astype(np.float32)
