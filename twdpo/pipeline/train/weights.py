"""From a cache row to the weight of every completion token: source, sink fix, alignment, mix, uncovered tokens.

Pure functions on arrays. Not for: the parts of that chain (`transforms.py` and `alignment.py` in `weights_cache`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.train.render import RenderedSide
from twdpo.weights_cache import SideWeights, transforms
from twdpo.weights_cache.alignment import align_weights

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRules:
    """How stored weights become training weights; see `TrainConfig` for the fields."""

    layers: tuple[int, ...]
    sink_fix: bool = True
    uniform_mix: float = 0.0
    uncovered: str = "zero"

    @property
    def uncovered_weight(self) -> np.float32:
        """The weight of a completion token that shares no character with a judged one."""
        return np.float32(1.0 if self.uncovered == "one" else 0.0)


def training_weights(stored: SideWeights, side: RenderedSide, rules: WeightRules) -> Floats:
    """The weights of one side's completion tokens, float32[completion_length].

    They are aligned over the whole answer and cut afterwards, so that a token weighs the same at every maximal length.
    """
    weights = transforms.select(stored.weights, rules.layers)
    if rules.sink_fix:
        weights = transforms.sink_fix(weights)
    aligned, covered = align_weights(weights, stored.starts, stored.ends, side.answer_starts, side.answer_ends)
    mixed = transforms.uniform_mix(aligned, rules.uniform_mix)
    return _over_completion(mixed, covered, side, rules)


def uniform_weights(side: RenderedSide, rules: WeightRules) -> Floats:
    """What a judge that attends evenly would give: 1 on every token of the answer; float32[completion_length]."""
    n = len(side.answer_starts)
    return _over_completion(np.ones(n, np.float32), np.ones(n, np.bool_), side, rules)


def _over_completion(weights: Floats, covered: Bools, side: RenderedSide, rules: WeightRules) -> Floats:
    """The answer's weights at their places in the completion, the rest uncovered."""
    sequence = np.full(max(side.answer_first + len(weights), len(side.ids)), rules.uncovered_weight, np.float32)
    answer = slice(side.answer_first, side.answer_first + len(weights))
    sequence[answer] = np.where(covered, weights, rules.uncovered_weight)
    return sequence[side.prompt_length : len(side.ids)]
