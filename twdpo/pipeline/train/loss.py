"""The TwDPO objective: pure functions of per-token log-probs, in torch.

    u = β (Σ_t w⁺_t ℓ⁺_t − Σ_t w⁻_t ℓ⁻_t),  ℓ_t = log π(y_t) − log π_ref(y_t),  L = −log σ(u)

With w = 1 on every completion token this is DPO (Rafailov et al. 2023, equation 7). Shapes: P pairs, T tokens of the
longest completion. Not for: computing log-probs (`logps.py`), weights (`weights.py`), other losses (`losses.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True, slots=True, kw_only=True)
class SideLogps:
    """One response side of P pairs, each [P, T] and zero at padding.

    policy, reference: log-probs of the completion tokens. weights: constants; no gradient flows into them. tokens: how
    many completion tokens there are, [P], for losses that take a mean; None where none is padding.
    """

    policy: Tensor
    reference: Tensor
    weights: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """What the loss gives for each of P pairs, each [P]; only `losses` and `u` carry a gradient.

    rewards: β Σ ℓ, or what a loss without a reference has in its place. logps: Σ log π. The weighted forms have w_t in
    the sum.
    """

    losses: Tensor
    u: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor
    weighted_chosen_rewards: Tensor
    weighted_rejected_rewards: Tensor
    chosen_logps: Tensor
    rejected_logps: Tensor
    weighted_chosen_logps: Tensor
    weighted_rejected_logps: Tensor


def twdpo_loss(chosen: SideLogps, rejected: SideLogps, *, beta: float, label_smoothing: float = 0.0) -> PairLosses:
    """The loss of every pair, in float32 or better.

    label_smoothing ε: the probability that a pair's label is wrong; L = −(1−ε) log σ(u) − ε log σ(−u) (cDPO).
    """
    plus, minus = Sums.of(chosen), Sums.of(rejected)
    u = beta * (plus.weighted_ratio - minus.weighted_ratio)
    losses = -(1.0 - label_smoothing) * logsigmoid(u) - label_smoothing * logsigmoid(-u)
    return with_ratio_rewards(losses, u, plus, minus, beta)


def with_ratio_rewards(losses: Tensor, u: Tensor, plus: Sums, minus: Sums, beta: float) -> PairLosses:
    """Losses with β times the log-ratios as rewards."""
    return PairLosses(
        losses=losses,
        u=u,
        chosen_rewards=beta * plus.ratio,
        rejected_rewards=beta * minus.ratio,
        weighted_chosen_rewards=beta * plus.weighted_ratio.detach(),
        weighted_rejected_rewards=beta * minus.weighted_ratio.detach(),
        chosen_logps=plus.logps,
        rejected_logps=minus.logps,
        weighted_chosen_logps=plus.weighted_logps,
        weighted_rejected_logps=minus.weighted_logps,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Sums over the tokens of one side; only weighted_ratio and the means carry a gradient.

    mean_*: a sum by the weights over the sum of the weights, 0 where that is 0.
    """

    weighted_ratio: Tensor
    mean_ratio: Tensor
    mean_logp: Tensor
    tokens: Tensor
    ratio: Tensor
    logps: Tensor
    weighted_logps: Tensor

    @classmethod
    def of(cls, side: SideLogps) -> Sums:
        dtype = torch.promote_types(side.policy.dtype, torch.float32)
        policy, reference, weights = (
            t.to(dtype) for t in (side.policy, side.reference.detach(), side.weights.detach())
        )
        ratio = policy - reference
        constant = policy.detach()
        weight, weighted_ratio = weights.sum(-1), (weights * ratio).sum(-1)
        # Not by 0 where nothing weighs anything: then the sums above are 0, too.
        divisor = torch.where(weight > 0, weight, 1.0)
        tokens = torch.full_like(weight, policy.shape[-1]) if side.tokens is None else side.tokens.to(dtype)
        return cls(
            weighted_ratio=weighted_ratio,
            mean_ratio=weighted_ratio / divisor,
            mean_logp=(weights * policy).sum(-1) / divisor,
            tokens=tokens,
            ratio=(constant - reference).sum(-1),
            logps=constant.sum(-1),
            weighted_logps=(weights * constant).sum(-1),
        )
