"""Losses beside TwDPO, each with weights where its own tokens all count the same, and the choice among them.

    SimPO   u = β (Σ w⁺ log π⁺ / Σ w⁺ − Σ w⁻ log π⁻ / Σ w⁻) − γ,  L = −log σ(u)      Meng et al. 2024, equation 6
    IPO     h = Σ w⁺ ℓ⁺ − Σ w⁻ ℓ⁻,  L = (h − 1/(2β))²                                Azar et al. 2023, equation 17

With w = 1 on every completion token these are SimPO and IPO. Not for: TwDPO, and DPO with it (`loss.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch.nn.functional import logsigmoid

from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.loss import PairLosses, SideLogps, Sums, twdpo_loss, with_ratio_rewards

Loss = Callable[[SideLogps, SideLogps], PairLosses]


def simpo_loss(
    chosen: SideLogps, rejected: SideLogps, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> PairLosses:
    """The loss of every pair; no reference takes part in it.

    Rewards are β times the mean log-prob of a token, the weighted ones β times the weighted mean; γ is the margin that
    the loss asks for, and no part of them. A side whose weights are all 0 has the mean 0. label_smoothing: as in
    `twdpo_loss`.
    """
    plus, minus = Sums.of(chosen), Sums.of(rejected)
    u = beta * (plus.mean_logp - minus.mean_logp) - gamma
    losses = -(1.0 - label_smoothing) * logsigmoid(u) - label_smoothing * logsigmoid(-u)
    return PairLosses(
        losses=losses,
        u=u,
        chosen_rewards=beta * plus.logps / plus.tokens,
        rejected_rewards=beta * minus.logps / minus.tokens,
        weighted_chosen_rewards=beta * plus.mean_logp.detach(),
        weighted_rejected_rewards=beta * minus.mean_logp.detach(),
        chosen_logps=plus.logps,
        rejected_logps=minus.logps,
        weighted_chosen_logps=plus.weighted_logps,
        weighted_rejected_logps=minus.weighted_logps,
    )


def ipo_loss(chosen: SideLogps, rejected: SideLogps, *, beta: float, mean: bool = False) -> PairLosses:
    """The loss of every pair: h is drawn to 1/(2β), from both sides; `u` is β h.

    mean: Σ w ℓ / Σ w on either side, as TRL has it, instead of the paper's sums. Rewards are those of TwDPO.
    """
    plus, minus = Sums.of(chosen), Sums.of(rejected)
    h = plus.mean_ratio - minus.mean_ratio if mean else plus.weighted_ratio - minus.weighted_ratio
    return with_ratio_rewards((h - 1.0 / (2.0 * beta)) ** 2, beta * h, plus, minus, beta)


def loss_of(config: TrainConfig) -> Loss:
    """The loss that a settled configuration asks for."""
    beta, smoothing = float(config.beta or 0.0), config.label_smoothing
    losses: dict[str, Loss] = {
        "twdpo": partial(twdpo_loss, beta=beta, label_smoothing=smoothing),
        "simpo": partial(simpo_loss, beta=beta, gamma=float(config.simpo_gamma or 0.0), label_smoothing=smoothing),
        "ipo": partial(ipo_loss, beta=beta, mean=config.ipo_mean),
    }
    return losses[config.loss]
