"""A forward pass over whole prompts, padded on the right, for models that cannot run prompts in a row.

There is no padding mask: under causal attention no real token can see what follows it, so the numbers are those of each
prompt alone and the fast causal kernels apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.capture import EnoughError, plain_attention
from twdpo.pipeline.annotate.engines.kernels import capped, softmax


class PaddedPass:
    """One pass over sequences of up to T tokens.

    layers: whose attention is kept, in `rows`: float32[R, T], mean over heads. positions: int64[R], the reading
    positions. stop_at: the layer at which EnoughError is raised.
    """

    masked = True

    def __init__(self, layers: Sequence[int], positions: Tensor, *, stop_at: int | None = None) -> None:
        self._layers, self._positions, self._stop_at = frozenset(layers), positions, stop_at
        self.rows: dict[int, Tensor] = {}

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
    ) -> Tensor:
        """An attention function of transformers, which keeps the rows on its way."""
        layer = getattr(module, "layer_idx", None)
        if layer in self._layers:
            if layer in self.rows:
                raise ModelError(f"layer {layer} runs attention more than once a pass; such models are not supported")
            self.rows[layer] = attention_row(query, key, mask, self._positions.to(query.device), **arguments)
            if layer == self._stop_at:
                raise EnoughError
        return plain_attention(module, query, key, value, mask, **arguments)


def attention_row(
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor | None,
    positions: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_others: Any,
) -> Tensor:
    """The softmax attention of query `positions[b]` in each sequence, mean over heads; float32 [batch, length].

    query: [batch, heads, length, width]; key: [batch, kv heads, length, width]; attention_mask: None for plain
    causal, else [batch or 1, heads or 1, length, length], bool (True: seen) or additive.
    """
    batch, heads, _, width = query.shape
    kv_heads, length = key.shape[1], key.shape[2]
    rows = torch.arange(batch, device=query.device)
    # Grouped heads: query head h reads key head h // (heads // kv_heads).
    q = query[rows, :, positions].view(batch, kv_heads, heads // kv_heads, width)
    scores = torch.matmul(q.float(), key.transpose(-1, -2).float()) * (width**-0.5 if scaling is None else scaling)
    scores = capped(scores, softcap).view(batch, heads, length)
    if attention_mask is None:
        seen = torch.arange(length, device=query.device) <= positions[:, None]
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
    else:
        row = attention_mask[rows if attention_mask.shape[0] == batch else torch.zeros_like(rows), :, positions]
        scores = scores.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else scores + row.float()
    return softmax(scores, None if s_aux is None else s_aux.float().view(heads, 1)).mean(dim=1)
