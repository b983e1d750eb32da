"""Log-probs of given tokens straight from hidden states and the LM head's weight, without keeping logits.

    logits = cap · tanh(scale · h Wᵀ / cap)        logp_n = logits[n, target_n] − logsumexp_v logits[n, v]

A chunk of logits at a time; on the way back they are computed again, but for the last chunk, which is still there.
Tokens whose upstream gradient is zero, as those of weight zero, take no part in the way back. Shapes: N tokens, D
hidden size, V vocabulary. Not for: heads that are more than one matrix (`logps.py` has slower ways for those).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twdpo.pipeline.cpu_linear import matmul_nt


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadRules:
    """What a family does to the head's output: scales it (Cohere, Granite), bounds it (Gemma 2). None: nothing."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The head's output as logits."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits


def linear_logps(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_N: Tensor,
    *,
    chunk: int,
    dtype: torch.dtype,
    rules: HeadRules,
) -> Tensor:
    """float32[N] (float64 for float64 input), differentiable in hidden, weight and bias.

    chunk: tokens whose logits are held at a time. dtype: what the matrices are multiplied in.
    """
    apply: Any = _LinearLogps.apply  # not annotated
    logps: Tensor = apply(hidden_ND, weight_VD, bias_V, targets_N, chunk, dtype, rules)
    return logps


@torch.no_grad()
def linear_logits(
    hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, *, dtype: torch.dtype, rules: HeadRules
) -> Tensor:
    """The logits themselves, float32[N, V] (float64 in float64), without a gradient: for a chunk that fits."""
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _Head(weight_VD.to(dtype), bias_V, rules).logits(hidden_ND.to(dtype))


class _LinearLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        chunk: int,
        dtype: torch.dtype,
        rules: HeadRules,
    ) -> Tensor:
        with torch.autocast(hidden_ND.device.type, enabled=False):
            head = _Head(weight_VD.to(dtype), bias_V, rules)
            kept: Tensor | None = None
            logps, maxima, sums = [hidden_ND.new_zeros(0, dtype=_wide(dtype))], [], []
            for start in range(0, len(targets_N), chunk):
                part = slice(start, start + chunk)
                kept = None  # freed before the next is made
                logits_NV = head.logits(hidden_ND[part].to(dtype))
                maxima.append(logits_NV.amax(-1))
                chosen_N = logits_NV.gather(-1, targets_N[part, None])[:, 0]
                kept = logits_NV.sub_(maxima[-1][:, None]).exp_()
                sums.append(kept.sum(-1))
                logps.append(chosen_N - maxima[-1] - sums[-1].log())
                del logits_NV
        statistics = [torch.cat(parts) if parts else logps[0] for parts in (maxima, sums)]
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, *statistics)
        # A bounded head needs the logits themselves on the way back.
        ctx.kept = kept if any(ctx.needs_input_grad) and rules.cap is None else None
        ctx.chunk, ctx.dtype, ctx.rules = chunk, dtype, rules
        return torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N, maximum_N, sum_N = ctx.saved_tensors
        upstream_N = gradients[0]
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        head = _Head(weight_VD.to(ctx.dtype), bias_V, ctx.rules)
        hidden_gradient = torch.zeros_like(hidden_ND) if wants_hidden else None
        weight_gradient: Tensor | None = None
        bias_gradient = torch.zeros_like(bias_V) if wants_bias else None
        kept, ctx.kept = ctx.kept, None
        # From the end: the last chunk's exponentials are still there.
        for start in reversed(range(0, len(targets_N), ctx.chunk)):
            rows = start + torch.nonzero(upstream_N[start : start + ctx.chunk])[:, 0]
            if len(rows):
                hidden = hidden_ND[rows].to(ctx.dtype)
                if kept is None:
                    exponentials_NV, bound = head.exponentials(hidden, maximum_N[rows])
                else:
                    exponentials_NV, bound = kept if len(rows) == len(kept) else kept[rows - start], None
                delta_NV = exponentials_NV.mul_((-upstream_N[rows] / sum_N[rows])[:, None])
                delta_NV[torch.arange(len(rows), device=rows.device), targets_N[rows]] += upstream_N[rows]
                delta_NV = head.unfinish(delta_NV, bound).to(ctx.dtype)
                if hidden_gradient is not None:
                    hidden_gradient[rows] = matmul_nt(delta_NV, head.weight.t()).to(hidden_gradient.dtype)
                if wants_weight:
                    part = matmul_nt(delta_NV.t(), hidden.t()).to(weight_VD.dtype)
                    weight_gradient = part if weight_gradient is None else weight_gradient.add_(part)
                if bias_gradient is not None:
                    bias_gradient += delta_NV.sum(0)
                del exponentials_NV, delta_NV
            kept = None
        if wants_weight and weight_gradient is None:
            weight_gradient = torch.zeros_like(weight_VD)
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None, None


class _Head:
    """The matrix and what comes after it, forwards and backwards."""

    def __init__(self, weight_VD: Tensor, bias_V: Tensor | None, rules: HeadRules) -> None:
        self.weight, self._bias, self._rules = weight_VD, bias_V, rules

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """float32[N, V], or float64; a tensor of its own."""
        logits = matmul_nt(hidden_ND, self.weight)
        if self._bias is not None:
            logits += self._bias
        logits = logits.to(_wide(logits.dtype))
        if self._rules.scale != 1.0:
            logits *= self._rules.scale
        if self._rules.cap:
            logits.div_(self._rules.cap).tanh_().mul_(self._rules.cap)
        return logits

    def exponentials(self, hidden_ND: Tensor, maximum_N: Tensor) -> tuple[Tensor, Tensor | None]:
        """exp(logits − maximum), and the slope of the bound at these logits."""
        logits = self.logits(hidden_ND)
        slope = 1.0 - (logits / self._rules.cap) ** 2 if self._rules.cap else None
        return logits.sub_(maximum_N[:, None]).exp_(), slope

    def unfinish(self, gradient_NV: Tensor, slope: Tensor | None) -> Tensor:
        """The gradient of h Wᵀ + b, in the place of that of the logits."""
        if slope is not None:
            gradient_NV *= slope
        return gradient_NV.mul_(self._rules.scale) if self._rules.scale != 1.0 else gradient_NV


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
