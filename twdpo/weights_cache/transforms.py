"""Pure functions from stored weights to the weights that train: attention source, sink fix, mix.

Applied when weights are read, so that one cache serves every choice. All arrays have mean 1 over an answer's
n judged tokens. Not for: moving weights to another tokenizer (`twdpo.weights_cache.alignment`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import UsageError

#: Answers shorter than this keep the weight of their first token.
SINK_FIX_MIN_TOKENS = 5


def sink_fix(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give the first token, where attention collects for no reason of content, the mean weight.

    `weights`: float32[n]. The others are rescaled so that the sum is kept; where all the weight lies on the
    first token, every token gets the mean. Fewer than five tokens are left as they are.
    """
    n = len(weights)
    if n < SINK_FIX_MIN_TOKENS:
        return weights
    exact = weights.astype(np.float64)
    total, mean = exact.sum(), exact.mean()
    rest = exact[1:].sum()
    fixed = np.full(n, mean)
    if rest > 0:
        fixed[1:] = exact[1:] * ((total - mean) / rest)
    return fixed.astype(np.float32)


def uniform_mix(weights: NDArray[np.float32], share: float) -> NDArray[np.float32]:
    """(1 − share) · w + share: from the weights as they are (0) to plain DPO (1)."""
    if not 0.0 <= share <= 1.0:
        raise UsageError(f"--uniform-mix {share} is outside 0 to 1")
    return weights if share == 0.0 else (weights * np.float32(1.0 - share) + np.float32(share)).astype(np.float32)


def parse_attn_source(text: str, layers: Sequence[int], *, option: str = "--attn-source") -> tuple[int, ...]:
    """The layers that `29`, `mean` or `mean:7,15` stand for, checked against those a cache holds.

    `last` is the deepest stored layer. `option` is what the user said it with. Raises UsageError naming the stored
    layers.
    """
    stored = tuple(sorted(layers))
    if text == "last":
        return stored[-1:]
    if text == "mean":
        return stored
    match = re.fullmatch(r"(?:mean:)?(\d+(?:,\d+)*)", text)
    wanted = tuple(int(part) for part in match[1].split(",")) if match else ()
    if not wanted or (len(wanted) > 1 and not text.startswith("mean:")):
        raise UsageError(f"{option} {text!r} is not understood; give a layer (29), mean, or mean:7,15")
    if missing := sorted(set(wanted) - set(stored)):
        raise UsageError(
            f"{option} {text}: layer {', '.join(map(str, missing))} is not in the cache, "
            f"which holds {', '.join(map(str, stored))}"
        )
    return wanted


def source_name(layers: Sequence[int]) -> str:
    """Layers as a person calls them: `layer 29`, or `mean of layers 7, 15`."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    return f"mean of layers {', '.join(map(str, layers))}"


def select(weights: Mapping[int, NDArray[np.float32]], layers: Sequence[int]) -> NDArray[np.float32]:
    """The mean over `layers` of one answer's weights; one layer alone passes through to the bit."""
    if len(layers) == 1:
        return weights[layers[0]]
    mean: NDArray[np.float64] = np.stack([weights[layer] for layer in layers]).astype(np.float64).mean(axis=0)
    return mean.astype(np.float32)
