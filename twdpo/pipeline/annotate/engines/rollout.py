"""Attention rollout (Abnar and Zuidema, 2020): how attention flows through all layers to the reading position.

A layer's map, mean over heads, is mixed half and half with the identity, for the residual stream, and the maps are
multiplied. Only the reading position's row of the product is wanted, so it is carried down from the top layer, a block
of queries at a time, and no map is ever held. Not for: weights out of rows (`twdpo.pipeline.annotate.weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.capture import EnoughError, plain_attention
from twdpo.pipeline.annotate.engines.kernels import Scores, capped, softmax
from twdpo.pipeline.annotate.engines.passes import Padded, RawReadings, Way
from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
from twdpo.pipeline.annotate.engines.tree import Ids, Tree
from twdpo.pipeline.annotate.prompt import JudgePrompt

#: Scores that are computed at once, over all heads.
_SCORES_ON_CPU, _SCORES_ON_ACCELERATOR = 1 << 22, 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a layer's attention is computed from, of one sequence of T tokens: H query heads, K key heads, width D.

    mask: what transformers made, [1, 1 or H, T, T], bool (True: seen) or additive; None for plain causal.
    """

    query_HTD: Tensor
    key_KTD: Tensor
    mask: Tensor | None
    scores: Scores

    def rows(self, start: int, stop: int) -> Tensor:
        """Attention of the queries [start, stop), mean over heads, float32[stop − start, stop]; what follows is 0."""
        H = self.query_HTD.shape[0]
        group = H // self.key_KTD.shape[0]
        keys = self.key_KTD[:, :stop].float().repeat_interleave(group, dim=0)
        scores = capped(
            torch.matmul(self.query_HTD[:, start:stop].float(), keys.transpose(1, 2)) * self.scores.scale,
            self.scores.softcap,
        )
        mask = self._mask(start, stop, scores.device)
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
        sinks = self.scores.sinks
        return softmax(scores, None if sinks is None else sinks.float().view(H, 1, 1)).mean(dim=0)

    def _mask(self, start: int, stop: int, device: torch.device) -> Tensor:
        if self.mask is not None:
            return self.mask[0, :, start:stop, :stop]
        places = torch.arange(stop, device=device)
        return places[start:, None] >= places


class RolloutPass:
    """One pass over one sequence, which keeps queries and keys of all layers; it ends behind the layer `stop_at`."""

    masked = True

    def __init__(self, *, stop_at: int | None) -> None:
        self._stop_at = stop_at
        self.layers: dict[int, Kept] = {}

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
    ) -> Tensor:
        """An attention function of transformers."""
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self.layers:
            raise ModelError(f"{type(module).__name__} runs attention outside of its layers, so it has no rollout")
        scores = Scores.of(query.shape[-1], arguments)
        self.layers[layer] = Kept(query_HTD=query[0], key_KTD=key[0], mask=mask, scores=scores)
        if layer == self._stop_at:
            raise EnoughError
        return plain_attention(module, query, key, value, mask, **arguments)


def rollout_rows(kept: Mapping[int, Kept], layers: Sequence[int], *, scores_at_once: int) -> dict[int, Tensor]:
    """The last position's row of the rollout up to and with each of `layers`, float32[T] each.

    Raises ModelError where a layer below them has no attention.
    """
    deepest = max(layers)
    if missing := sorted(set(range(deepest + 1)) - set(kept)):
        raise ModelError(f"layer {missing[0]} gave no attention, so there is no rollout through it; use another judge")
    H, T, _ = kept[deepest].query_HTD.shape
    step = max(scores_at_once // (H * T), 1)
    wanted = sorted(layers, reverse=True)
    rows_RT = torch.zeros(len(wanted), T)
    for layer in range(deepest, -1, -1):
        if layer in wanted:
            rows_RT[wanted.index(layer), -1] = 1.0
        rows_RT = rows_RT.to(kept[layer].query_HTD.device)
        through_RT = torch.zeros_like(rows_RT)
        for stop in range(T, 0, -step):
            start = max(stop - step, 0)
            part = rows_RT[:, start:stop]
            # The rows begin at one position, of which nothing reaches most of the top layer's queries.
            if bool(part.any()):
                through_RT[:, :stop] += part @ kept[layer].rows(start, stop)
        rows_RT = (rows_RT + through_RT) / 2
    return {layer: rows_RT[number] for number, layer in enumerate(wanted)}


class OneByOne(Padded):
    """A prompt a pass, for the memory that its queries and keys take."""

    def take(self, trees: Sequence[Tree], budget: int, most: int | None) -> list[Tree]:
        """The first."""
        return list(trees[:1])

    def run(self, trees: Sequence[Tree], ids: Sequence[Ids], layers: Sequence[int], *, verdict: bool) -> RawReadings:
        """One pass up, and the row carried down."""
        (index,) = trees[0].prompts
        kept = RolloutPass(stop_at=None if verdict else max(layers))
        tokens = torch.from_numpy(ids[index].astype("int64"))[None].to(self._device)
        logits = self._forward(kept, lambda hidden: hidden[:, -1:], input_ids=tokens)
        at_once = _SCORES_ON_CPU if self._device.type == "cpu" else _SCORES_ON_ACCELERATOR
        rows = rollout_rows(kept.layers, layers, scores_at_once=at_once)
        return self._readings((index,), {layer: row[None] for layer, row in rows.items()}, layers, logits)


class RolloutEngine(TransformersEngine):
    """Reads the rollout where another engine reads a layer's attention; "layer" L is the rollout up to and with L."""

    def reach(self, layer: int) -> int | None:
        """The whole prompt, which windows pass on from layer to layer."""
        return None

    def flops(self, prompts: Sequence[JudgePrompt], layers: Sequence[int], *, verdict: bool) -> float | None:
        """Not said: most of the work is no matrix product of the model."""
        return None

    def _choose_way(self, ids: Ids) -> Way:
        return OneByOne(self._model, self.num_layers)
