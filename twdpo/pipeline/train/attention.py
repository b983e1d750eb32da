"""Attention over sequences laid end to end, some of which share a beginning: an attention function for transformers.

Registers `twdpo_branches` beside transformers' own functions. A `Stem` is a run of tokens from which branches part: a
prompt and its two answers. Each branch sees the stem and itself, never another branch. Without stems the function is
transformers' SDPA. Not for: deciding what is laid where (`layouts.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twdpo.errors import ModelError
from twdpo.pipeline.causal import causal_attention

NAME = "twdpo_branches"

#: Arguments that change the scores in ways that are not followed here.
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "head_mask", "block_mask", "score_mod")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """`length` tokens that all branches share, then the branches' own tokens, one branch after another."""

    length: int
    branches: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Of stem and branches."""
        return self.length + sum(self.branches)


_observed: set[int | None] | None = None


@contextmanager
def observed_windows() -> Iterator[set[int | None]]:
    """The sliding windows that layers ask for while the block runs; None is among them where one asks for none."""
    global _observed
    windows: set[int | None] = set()
    _observed = windows
    try:
        yield windows
    finally:
        _observed = None


def register() -> str:
    """Make the attention function known to transformers and return its name; harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, branch_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def branch_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    stems: Sequence[Stem] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers; query [1, heads, T, width], key and value with heads of their own.

    T is the sum of the stems' tokens. Returns [1, T, heads, width]. Raises ModelError for scores that are computed in
    ways it does not know.
    """
    if stems is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        return output, None
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ModelError(f"{type(module).__name__} uses {name}; use --layout padded")
    # Rotary embeddings leave these in float32 under autocast, and a causal bias is refused before autocast acts.
    query, key = query.to(value.dtype), key.to(value.dtype)
    options = {"scale": kwargs.get("scaling"), "window": kwargs.get("sliding_window")}
    if _observed is not None:
        _observed.add(options["window"])
    # One split for all, since each slice would fill a tensor of the whole size on the way back. The first branch stands
    # beside its stem already.
    sizes = [size for stem in stems for size in (stem.length + stem.branches[0], *stem.branches[1:])]
    parts = zip(*(torch.split(tensor, sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs: list[Tensor] = []
    for stem in stems:
        q, k, v = next(parts)
        outputs.append(causal_attention(q, k, v, **options).transpose(1, 2))
        for _ in stem.branches[1:]:
            branch_q, branch_k, branch_v = next(parts)
            keys = torch.cat([k[:, :, : stem.length], branch_k], dim=2)
            values = torch.cat([v[:, :, : stem.length], branch_v], dim=2)
            outputs.append(causal_attention(branch_q, keys, values, **options).transpose(1, 2))
    # Joined in the order that the output projection wants: nothing is copied again.
    return torch.cat(outputs, dim=1), None
