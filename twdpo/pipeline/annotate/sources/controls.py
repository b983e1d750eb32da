"""`shuffled` and `random`: the weights of another source reworked, to tell what they say from how they are spread.

With `--base` the weights are those of a cache, and no model is run; without it a judge reads the pairs as for
`attention`. Not for: the reworking itself (`reworking.py`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twdpo.errors import DataError, UsageError
from twdpo.pipeline.annotate.prompt import PromptError
from twdpo.pipeline.annotate.sources.attention import AttentionSource
from twdpo.pipeline.annotate.sources.base import Setup, WeightSource
from twdpo.pipeline.annotate.sources.reworking import Floats, random_bits, resampled, shuffled
from twdpo.pipeline.model_files import DEFAULT_MODEL
from twdpo.preferences import Pair
from twdpo.weights_cache import Recipe, SideWeights, WeightRow, WeightsCache
from twdpo.weights_cache.rejects import read_rejects


@dataclass(frozen=True, slots=True, kw_only=True)
class ReworkOptions:
    """seed: of what is drawn, with each pair's hash and side."""

    seed: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, and is {self.seed}")


class ReworkedSource(WeightSource[Any, Any]):
    """Another source's rows, of which `rework` changes the weights."""

    Options = ReworkOptions
    runs_on_vllm = True
    takes_base = True

    def __init__(self, setup: Setup) -> None:
        judging = replace(setup, config=replace(setup.config, source="attention", source_options=None))
        self._base: WeightSource[Any, Any] = CachedSource(setup) if setup.config.base else AttentionSource(judging)
        self._options: ReworkOptions = setup.options
        self.policy_model, self.has_sink = self._base.policy_model, self._base.has_sink
        self.recipe = _reworked(self._base.recipe, setup.config.source, self._options, has_sink=self.has_sink)

    @abstractmethod
    def rework(self, weights: Mapping[int, Floats], bits: NDArray[np.uint64], kept: int) -> dict[int, Floats]:
        """The weights of one answer in every layer, float32[n] each, reworked; bits: uint64[n], random.

        kept: so many at the beginning keep their weight.
        """

    def prepare(self, pair: Pair) -> Any:
        """As the other source does. Raises PromptError."""
        return self._base.prepare(pair)

    def read(self, items: Sequence[Any]) -> Sequence[Any]:
        """As the other source does."""
        return self._base.read(items)

    def row(self, pair: Pair, item: Any, found: Any) -> WeightRow:
        """The other source's row with its weights reworked; how well its orders agreed is not said of these."""
        row = self._base.row(pair, item, found)
        sides = {name: self._side(row, name) for name in ("chosen", "rejected")}
        return replace(
            row,
            chosen=sides["chosen"],
            rejected=sides["rejected"],
            order_agreement_chosen=math.nan,
            order_agreement_rejected=math.nan,
            prompt=None,
            chosen_text=None,
            rejected_text=None,
        )

    def _side(self, row: WeightRow, name: str) -> SideWeights:
        side = row.side(name)
        bits = random_bits(len(side), seed=self._options.seed, example_hash=row.example_hash, side=name)
        return replace(side, weights=self.rework(side.weights, bits, int(self.has_sink)))

    def size(self, item: Any) -> int:
        """As of the other source."""
        return self._base.size(item)

    @property
    def window_tokens(self) -> int:
        """As of the other source."""
        return self._base.window_tokens

    @property
    def peak_flops(self) -> float | None:
        """As of the other source."""
        return self._base.peak_flops

    def flops(self, items: Sequence[Any]) -> float | None:
        """As of the other source."""
        return self._base.flops(items)


class ShuffledSource(ReworkedSource):
    """The weights of an answer on other tokens of it."""

    def rework(self, weights: Mapping[int, Floats], bits: NDArray[np.uint64], kept: int) -> dict[int, Floats]:
        """One permutation for all layers."""
        return shuffled(weights, bits, kept)


class RandomSource(ReworkedSource):
    """Each token weighs what a token of the same answer does that is drawn at random."""

    def rework(self, weights: Mapping[int, Floats], bits: NDArray[np.uint64], kept: int) -> dict[int, Floats]:
        """One drawing for all layers."""
        return resampled(weights, bits, kept)


class CachedSource(WeightSource[WeightRow, None]):
    """The rows of the cache that `--base` names, for the pairs asked for. No source of its own."""

    def __init__(self, setup: Setup) -> None:
        config = setup.config
        self._folder = Path(config.base or "")
        self._cache = WeightsCache.open(self._folder, text=False)
        self.recipe = self._cache.recipe
        if self.recipe.source in ("shuffled", "random"):
            raise UsageError(
                f"--base {config.base}: its weights are {self.recipe.source} already; name what it was made of"
            )
        judge = self.recipe.judge_model
        if config.model not in (DEFAULT_MODEL, judge):
            raise UsageError(
                f"--model {config.model}: --base {config.base} was made with {judge or 'another'}; leave --model out"
            )
        self.has_sink, defaults = self._cache.manifest.has_sink, self._cache.manifest.defaults
        self.policy_model = str(defaults.get("policy_model") or "") or self.recipe.judge_model or None
        self._rejects = {reject.example_hash: reject.reason for reject in read_rejects(self._folder)}

    def prepare(self, pair: Pair) -> WeightRow:
        """The pair's row. Raises PromptError where the cache left it out, and DataError where it never met it."""
        key = pair.example_hash
        if key in self._cache:
            return self._cache.get(key)
        if key in self._rejects:
            raise PromptError(self._rejects[key])
        raise DataError(
            f"--base {self._folder} has no weights of row {pair.row} of the data set; annotate all pairs into it "
            "first, or ask for those that it was asked for (--limit, --seed)"
        )

    def read(self, items: Sequence[WeightRow]) -> list[None]:
        """Nothing: there is no model."""
        return [None] * len(items)

    def row(self, pair: Pair, item: WeightRow, found: None) -> WeightRow:
        """The row as it is."""
        return item


def _reworked(recipe: Recipe, source: str, options: ReworkOptions, *, has_sink: bool) -> Recipe:
    """The recipe of another source's weights reworked; which source is said where it is not attention."""
    said: dict[str, Any] = asdict(options)
    if not has_sink:
        said["first_token"] = "moved"
    if recipe.source != "attention":
        said["of"] = recipe.source
        if recipe.source_options:
            said["of_options"] = dict(recipe.source_options)
    return replace(recipe, source=source, source_options=said)
