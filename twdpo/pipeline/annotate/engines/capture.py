"""One row of attention out of transformers' own attention interface.

Registers an attention function, `twdpo_capture`, beside transformers' own. It computes the layer's output with the
fastest exact kernel and, while a recorder is active and wants the layer, the softmax of one query against the
layer's keys: q at the reading position, nothing else. A full attention map is never built.

The matching mask function is registered too: without one, transformers would drop the mask without a word.
Not for: batching and reading out (`transformers.py` beside this).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from twdpo.errors import ModelError

NAME = "twdpo_capture"

#: Arguments that change the scores in ways that the captured row would not follow.
_UNSUPPORTED = ("position_bias", "head_mask", "block_mask", "score_mod")
#: How many queries a soft-capped layer computes at a time.
_CHUNK = 128


class Recorder:
    """Collects, for each wanted layer, the attention of one position per sequence; float32 [batch, length]."""

    def __init__(self, layers: Sequence[int], positions: Tensor) -> None:
        self.layers = frozenset(layers)
        self.positions = positions
        self.rows: dict[int, Tensor] = {}


_active: Recorder | None = None


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Let `twdpo_capture` fill `recorder` while the block runs."""
    global _active
    _active, before = recorder, _active
    try:
        yield
    finally:
        _active = before


def register() -> str:
    """Make the attention function known to transformers and return its name; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, capture_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def capture_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers: query [batch, heads, length, width], key and value with own heads."""
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ModelError(
                f"{type(module).__name__} uses {name}, which attention capture does not follow; use another judge"
            )
    recorder = _active
    layer = getattr(module, "layer_idx", None)
    if recorder is not None and layer in recorder.layers:
        if layer in recorder.rows:
            raise ModelError(f"layer {layer} runs attention more than once a pass; such models are not supported")
        recorder.rows[layer] = attention_row(query, key, attention_mask, recorder.positions, **kwargs)
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        return _chunked_attention(query, key, value, attention_mask, **kwargs), None
    return _sdpa(module, query, key, value, attention_mask, **kwargs), None


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
    scores = torch.matmul(q, key.transpose(-1, -2)).float() * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(batch, heads, length)
    if attention_mask is None:
        seen = torch.arange(length, device=query.device) <= positions[:, None]
        scores = scores.masked_fill(~seen[:, None], float("-inf"))
    else:
        row = attention_mask[rows if attention_mask.shape[0] == batch else torch.zeros_like(rows), :, positions]
        scores = scores.masked_fill(~row, float("-inf")) if row.dtype == torch.bool else scores + row.float()
    if s_aux is not None:
        sinks = s_aux.float().view(1, heads, 1).expand(batch, heads, 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1].mean(dim=1)
    return scores.softmax(dim=-1).mean(dim=1)


def _sdpa(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Tensor:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output


def _chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_others: Any,
) -> Tensor:
    """Attention with a soft cap or learned sinks, which SDPA lacks, some queries at a time.

    Returns [batch, length, heads, width].
    """
    batch, heads, length, width = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = width**-0.5 if scaling is None else scaling
    places = torch.arange(length, device=query.device)
    outputs = []
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        scores = torch.matmul(query[:, :, start:stop], key.transpose(-1, -2)) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        mask = attention_mask[:, :, start:stop] if attention_mask is not None else places[start:stop, None] >= places
        scores = scores.float()
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        if s_aux is not None:
            sinks = s_aux.float().view(1, heads, 1, 1).expand(batch, heads, stop - start, 1)
            weights = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
        else:
            weights = scores.softmax(dim=-1)
        outputs.append(torch.matmul(weights.to(value.dtype), value))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
