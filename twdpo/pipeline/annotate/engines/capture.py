"""The attention function, `twdpo_capture`, that the transformers engine gives to a model.

While a pass of the engine is running, attention is that pass's affair (`packed.py`, `padded.py`); else it is computed
with the fastest exact kernel. The matching mask function is registered too: without one, transformers would drop the
mask without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.kernels import capped, softmax

NAME = "twdpo_capture"

#: Arguments that change the scores in ways that are not followed here.
_UNSUPPORTED = ("position_bias", "head_mask", "block_mask", "score_mod")
#: How many queries a soft-capped layer computes at a time.
_CHUNK = 128


class EnoughError(Exception):
    """Everything that was asked for is known: the pass need not go on."""


class Pass(Protocol):
    """A forward pass that computes attention itself. masked: whether it wants transformers' mask."""

    masked: bool

    def attend(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
    ) -> Tensor:
        """query [B, H, T, D], key and value [B, K, T, D] → [B, T, H, D]."""


_active: Pass | None = None


@contextlib.contextmanager
def running(forward_pass: Pass) -> Iterator[None]:
    """Let `forward_pass` compute the attention of models with `twdpo_capture` while the block runs."""
    global _active
    _active, before = forward_pass, _active
    try:
        yield
    finally:
        _active = before


def register() -> str:
    """Make the attention function known to transformers and return its name; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, capture_attention)
    AttentionMaskInterface.register(NAME, _mask)
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
    compute = plain_attention if _active is None else _active.attend
    return compute(module, query, key, value, attention_mask, **kwargs), None


def plain_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **arguments: Any
) -> Tensor:
    """Attention under transformers' own mask; [batch, length, heads, width]."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if arguments.get("softcap") is not None or arguments.get("s_aux") is not None:
        return _chunked_attention(query, key, value, mask, **arguments)
    output, _ = sdpa_attention_forward(module, query, key, value, mask, **arguments)
    return output


def _mask(*arguments: Any, **options: Any) -> Tensor | None:
    from transformers.masking_utils import sdpa_mask

    return sdpa_mask(*arguments, **options) if _active is None or _active.masked else None


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
    _, heads, length, width = query.shape
    groups = heads // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = width**-0.5 if scaling is None else scaling
    places = torch.arange(length, device=query.device)
    outputs = []
    for start in range(0, length, _CHUNK):
        stop = min(start + _CHUNK, length)
        scores = capped(torch.matmul(query[:, :, start:stop], key.transpose(-1, -2)) * scale, softcap)
        mask = attention_mask[:, :, start:stop] if attention_mask is not None else places[start:stop, None] >= places
        scores = scores.float()
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        weights = softmax(scores, None if s_aux is None else s_aux.float().view(heads, 1, 1))
        outputs.append(torch.matmul(weights.to(value.dtype), value))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
