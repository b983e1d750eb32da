"""Examples: pairs as tokens with a weight for each that is trained on.

Not for: which pairs a run uses (`parts.py`, `survey.py`), in which order (`batches.py`), or how they come to the loop
(`feed.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.render import RenderedSide, Renderer, RenderError
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.preferences import Pair
from twdpo.weights_cache import SideWeights, WeightRow, WeightsCache

#: Pairs whose weights are fetched together.
WINDOW = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One response: ids int32[T], of which the first `prompt_length` are the prompt, and a weight for each other one.

    weights: float32[T − prompt_length]. cut: whether it goes on beyond the maximal length.
    """

    ids: NDArray[np.int32]
    prompt_length: int
    weights: NDArray[np.float32]
    cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Example:
    """A pair ready to be trained on; `row` is its place in its data set."""

    example_hash: str
    row: int
    chosen: Side
    rejected: Side

    @property
    def longest(self) -> int:
        """Tokens of the longer response, prompt included."""
        return max(len(self.chosen.ids), len(self.rejected.ids))

    @property
    def cut(self) -> bool:
        """Whether one of the responses was cut to the maximal length."""
        return self.chosen.cut or self.rejected.cut

    @property
    def tokens(self) -> int:
        """Tokens of both responses, prompts included."""
        return len(self.chosen.ids) + len(self.rejected.ids)

    @property
    def digest(self) -> bytes:
        """16 bytes over all that is trained on: the pair, its tokens and weights."""
        digest = hashlib.sha256(self.example_hash.encode())
        for side in (self.chosen, self.rejected):
            digest.update(side.ids.tobytes() + side.weights.tobytes())
        return digest.digest()[:16]


class Joiner:
    """Renders pairs and gives their tokens weights. Not for use by several threads at once."""

    def __init__(self, config: TrainConfig, cache: WeightsCache, renderer: Renderer) -> None:
        self.cache = cache
        self._renderer = renderer
        self._rules = WeightRules(
            layers=cache.layers,
            sink_fix=config.sink_fix and cache.manifest.has_sink,
            uniform_mix=config.uniform_mix,
            uncovered=config.uncovered,
        )

    def join(self, pairs: Sequence[tuple[Pair, bool]]) -> list[Example | str]:
        """Each (pair, whether its weights are even) as an example, or the reason why it cannot be one.

        All others have their rows fetched at once: see `WINDOW`. Raises MissingRows.
        """
        keys = [pair.example_hash for pair, _ in pairs]
        with_rows = [key for key, (_, even) in zip(keys, pairs, strict=True) if not even]
        found = dict(zip(with_rows, self.cache.fetch(with_rows), strict=True))
        return [
            self._example(pair, key, None if even else found[key])
            for key, (pair, even) in zip(keys, pairs, strict=True)
        ]

    def _example(self, pair: Pair, key: str, row: WeightRow | None) -> Example | str:
        try:
            rendered = self._renderer.render(pair)
        except RenderError as error:
            return str(error)
        return Example(
            example_hash=key,
            row=pair.row,
            chosen=self._side(rendered.chosen, row.chosen if row else None),
            rejected=self._side(rendered.rejected, row.rejected if row else None),
        )

    def _side(self, side: RenderedSide, stored: SideWeights | None) -> Side:
        weights = uniform_weights(side, self._rules) if stored is None else training_weights(stored, side, self._rules)
        return Side(ids=side.ids, prompt_length=side.prompt_length, weights=weights, cut=side.cut)
