"""Exact causal attention of the last queries of a sequence: query i sees keys up to i + (keys − queries).

    grouped   matrix products over the query heads that share a key head, some queries at a time; any device and window,
              soft caps and learned sinks. On CPUs faster than torch's own kernel for them (benchmarks/matmul.py).
    fused     torch's own kernels (`pipeline/causal.py`), for accelerators
    varlen    torch's flash kernel over sequences of different lengths at once, for NVIDIA GPUs in half precision

Shapes: H query heads, K key heads, n queries, m ≥ n keys, D width. Not for: which keys a query sees (`packed.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from twdpo.pipeline.causal import causal_attention
from twdpo.pipeline.cpu_linear import exact_matmul_nt

#: Scores that are computed at once, per thread on a CPU: they stay in its cache.
_SCORES_ON_CPU, _SCORES_ON_ACCELERATOR = 1 << 18, 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What a model does to its scores: scale, the window in tokens, the soft cap, and a learned sink float[H]."""

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @classmethod
    def of(cls, width: int, arguments: dict[str, Any]) -> Scores:
        """From the arguments that transformers passes to attention functions; width is a head's."""
        scaling = arguments.get("scaling")
        return cls(
            scale=width**-0.5 if scaling is None else float(scaling),
            window=arguments.get("sliding_window"),
            softcap=arguments.get("softcap"),
            sinks=arguments.get("s_aux"),
        )


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Scores under a soft cap c: c · tanh(score / c)."""
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """The softmax over the last axis, in the scores' type. A learned sink takes its part and gives nothing.

    sinks: float32, a score a row, with a last axis of 1.
    """
    if sinks is None:
        return scores.softmax(dim=-1)
    wide = torch.cat([scores.float(), sinks.expand(*scores.shape[:-1], 1)], dim=-1)
    return wide.softmax(dim=-1)[..., :-1].to(scores.dtype)


def attend(q_HnD: Tensor, k_KmD: Tensor, v_KmD: Tensor, scores: Scores) -> Tensor:
    """Attention [n, H, D] of the last n positions of m."""
    if _prefers_products(q_HnD.device) or scores.softcap is not None or scores.sinks is not None:
        return grouped(q_HnD, k_KmD, v_KmD, scores)
    fused = causal_attention(q_HnD[None], k_KmD[None], v_KmD[None], scale=scores.scale, window=scores.window)
    return fused[0].transpose(0, 1)


def _prefers_products(device: torch.device) -> bool:
    return device.type == "cpu"


def grouped(q_HnD: Tensor, k_KmD: Tensor, v_KmD: Tensor, scores: Scores) -> Tensor:
    """Attention [n, H, D] by plain matrix products."""
    H, n, D = q_HnD.shape
    K, m = k_KmD.shape[:2]
    group, before = H // K, m - n
    at_once = _SCORES_ON_CPU * torch.get_num_threads() if q_HnD.device.type == "cpu" else _SCORES_ON_ACCELERATOR
    step = max(at_once // (group * m), 16)
    output_nHD = q_HnD.new_empty(n, H, D)
    places = torch.arange(m, device=q_HnD.device)
    for k in range(K):
        heads = slice(k * group, (k + 1) * group)
        keys_mD, values_Dm = k_KmD[k], v_KmD[k].t()
        sinks = None if scores.sinks is None else scores.sinks[heads].float().view(group, 1, 1)
        for start in range(0, n, step):
            stop = min(start + step, n)
            first = 0 if scores.window is None else max(before + start - scores.window + 1, 0)
            last = before + stop
            q_gsD = q_HnD[heads, start:stop] * scores.scale
            scores_gsk = exact_matmul_nt(q_gsD.reshape(-1, D), keys_mD[first:last]).view(
                group, stop - start, last - first
            )
            scores_gsk = capped(scores_gsk, scores.softcap)
            _hide(scores_gsk, places[before + start : last], places[first:last], scores.window)
            probabilities_gsk = softmax(scores_gsk, sinks)
            weighed = exact_matmul_nt(probabilities_gsk.view(-1, last - first), values_Dm[:, first:last])
            output_nHD[start:stop, heads] = weighed.view(group, stop - start, D).transpose(0, 1)
    return output_nHD


def has_varlen(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `varlen` may be tried: on a GPU, in half precision, with a torch that has it."""
    return device.type == "cuda" and dtype.itemsize == 2 and find_spec("torch.nn.attention.varlen") is not None


def varlen(
    q_HTD: Tensor, k_KMD: Tensor, v_KMD: Tensor, ends: tuple[Tensor, Tensor], longest: tuple[int, int], scores: Scores
) -> Tensor:
    """Attention [T, H, D] of sequences laid end to end. ends: int32[sequences + 1] of queries and of keys."""
    from torch.nn.attention import varlen as torch_varlen

    q, k, v = (tensor.transpose(0, 1).contiguous() for tensor in (q_HTD, k_KMD, v_KMD))
    attention: Any = torch_varlen.varlen_attn  # its annotations differ between versions
    output: Tensor = attention(
        q,
        k,
        v,
        *ends,
        *longest,
        scale=scores.scale,
        window_size=(-1 if scores.window is None else scores.window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return output


def _hide(scores_gsk: Tensor, queries_s: Tensor, keys_k: Tensor, window: int | None) -> None:
    """What a query must not see becomes −∞, in place; only the last `s` keys can lie after a query."""
    s = len(queries_s)
    if window is None:
        scores_gsk[:, :, -s:].masked_fill_(keys_k[-s:] > queries_s[:, None], float("-inf"))
        return
    distance = queries_s[:, None] - keys_k
    scores_gsk.masked_fill_((distance < 0) | (distance >= window), float("-inf"))
