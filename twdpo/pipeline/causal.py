"""Causal attention by torch's fused kernels, also of the last queries of a sequence, for both stages.

Not for: what is laid where (`train/attention.py`, `annotate/engines/packed.py`), soft caps, or learned sinks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def causal_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None, window: int | None) -> Tensor:
    """Attention of the last n of m positions, [B, H, n, width]; query i sees keys up to i + (m − n).

    q: [B, H, n, width]; k, v: [B, K, m, width], where H is a multiple of K. scale: None for width^−½. window: how many
    tokens back a query sees, itself included; None for all.
    """
    length, grouped = k.shape[2], q.shape[1] != k.shape[1]
    windowed = window is not None and window < length
    plain = q.shape[2] == length and not windowed
    if grouped and q.is_cuda and not (plain and q.dtype.itemsize == 2):
        # Only its flash kernel, which takes half precision and no mask, shares keys among queries.
        groups = q.shape[1] // k.shape[1]
        k, v, grouped = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1), False
    if plain:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    if windowed:
        places = torch.arange(length, device=q.device)
        distance = places[length - q.shape[2] :, None] - places
        mask = (distance >= 0) & (distance < (window or 0))
    else:
        mask = _lower_right(q, length)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=grouped)


def _lower_right(q: Tensor, length: int) -> Any:
    """The causal mask of the last queries: on a GPU one that its flash kernel knows, and that is never built."""
    if q.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(q.shape[2], length)
    return torch.ones(q.shape[2], length, dtype=torch.bool, device=q.device).tril(length - q.shape[2])
