"""Move per-token weights from one tokenization of a text to another, by characters.

Weights belong to the text: each token's mass is spread evenly over its characters and collected again by the
tokens of the other tokenization. Pure functions on arrays, used by both stages and for looking at weights.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


def align_weights(
    weights: Floats,
    starts: Ints,
    ends: Ints,
    to_starts: Ints,
    to_ends: Ints,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Weights of the tokens `[to_starts, to_ends)`, from `weights` of the tokens `[starts, ends)`.

    weights: float32[n]; starts, ends: int32[n]; to_starts, to_ends: int32[m], all in characters of the same text.
    Returns float32[m] and bool[m], which tokens are covered: they share a character with a weighted token. The mean
    over the covered tokens is the mean of `weights`; the others get 0. Where the tokenizations agree token for token
    the weights pass through unchanged, to the bit. Several tokens may share one character (the bytes of an emoji).
    """
    if _same_tokens(starts, ends, to_starts, to_ends):
        aligned = np.zeros(len(to_starts), np.float32)
        aligned[: len(weights)] = weights
        return aligned, np.arange(len(to_starts)) < len(weights)
    length = int(max(ends.max(initial=0), to_ends.max(initial=0)))
    density = _spread(weights.astype(np.float64), starts, ends, length)
    judged = _spread(np.ones(len(weights)), starts, ends, length) > 0
    # A character that k tokens of the target share gives each of them a k-th of its mass.
    sharers = np.maximum(_count(to_starts, to_ends, length), 1)
    mass_to_here = np.concatenate([[0.0], np.cumsum(density / sharers)])
    judged_to_here = np.concatenate([[0], np.cumsum(judged)])
    collected = mass_to_here[to_ends] - mass_to_here[to_starts]
    covered = judged_to_here[to_ends] > judged_to_here[to_starts]
    collected = np.where(covered, np.maximum(collected, 0.0), 0.0)
    total = collected.sum()
    if total > 0:
        collected *= float(weights.astype(np.float64).mean()) * covered.sum() / total
    return collected.astype(np.float32), covered


def _same_tokens(starts: Ints, ends: Ints, to_starts: Ints, to_ends: Ints) -> bool:
    """Whether the weighted tokens are the first of the target's, and the target's others lie beyond them."""
    n = len(starts)
    return (
        len(to_starts) >= n
        and np.array_equal(starts, to_starts[:n])
        and np.array_equal(ends, to_ends[:n])
        and (len(to_starts) == n or n == 0 or int(to_starts[n:].min()) >= int(ends.max()))
    )


def _count(starts: Ints, ends: Ints, length: int) -> NDArray[np.int64]:
    """How many tokens cover each character."""
    steps = np.zeros(length + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    return np.cumsum(steps)[:-1]


def _spread(mass: NDArray[np.float64], starts: Ints, ends: Ints, length: int) -> NDArray[np.float64]:
    """Each token's mass, evenly over its characters; float64[length]."""
    widths = ends - starts
    wide = widths > 0
    # 0, 1, 2, ... within each token, for all tokens at once.
    within = np.arange(widths[wide].sum()) - np.repeat(np.cumsum(widths[wide]) - widths[wide], widths[wide])
    positions = np.repeat(starts[wide], widths[wide]) + within
    density = np.repeat(mass[wide] / widths[wide], widths[wide])
    spread: NDArray[np.float64] = np.bincount(positions, weights=density, minlength=length).astype(np.float64)
    return spread
