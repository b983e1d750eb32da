"""The objective: its identities, its gradient, and an oracle in numpy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from twdpo.pipeline.train.loss import PairLosses, SideLogps, twdpo_loss

SEEDS = st.integers(0, 2**32 - 1)
BETAS = st.floats(0.001, 2.0)


def make_side(seed: int, pairs: int = 3, tokens: int = 6, *, dtype: torch.dtype = torch.float64) -> SideLogps:
    """Random log-probs and weights; each row ends in its own number of padding zeros."""
    rng = np.random.default_rng(seed)
    filled = np.arange(tokens) < rng.integers(1, tokens + 1, (pairs, 1))
    policy, reference, weights = -5 * rng.random((3, pairs, tokens)) * filled
    tensors = [torch.tensor(array, dtype=dtype) for array in (policy, reference, -weights)]
    return SideLogps(policy=tensors[0], reference=tensors[1], weights=tensors[2])


def sides(seed: int) -> tuple[SideLogps, SideLogps]:
    """A chosen and a rejected side, of different lengths."""
    return make_side(seed), make_side(seed + 1, tokens=9)


def oracle(chosen: SideLogps, rejected: SideLogps, beta: float, smoothing: float) -> NDArray[np.float64]:
    """The loss by its definition, pair by pair."""
    losses = []
    for pair in range(len(chosen.policy)):
        u = 0.0
        for sign, side in ((1.0, chosen), (-1.0, rejected)):
            for t in range(side.policy.shape[1]):
                u += sign * beta * float(side.weights[pair, t] * (side.policy[pair, t] - side.reference[pair, t]))
        losses.append((1 - smoothing) * math.log1p(math.exp(-u)) + smoothing * math.log1p(math.exp(u)))
    return np.array(losses)


@given(SEEDS, BETAS, st.floats(0.0, 0.49))
def test_agrees_with_the_definition(seed: int, beta: float, smoothing: float) -> None:
    chosen, rejected = sides(seed)
    found = twdpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(found.losses.numpy(), oracle(chosen, rejected, beta, smoothing), rtol=1e-10)


@given(SEEDS, BETAS)
def test_all_ones_are_dpo(seed: int, beta: float) -> None:
    chosen, rejected = (replace(side, weights=torch.ones_like(side.weights)) for side in sides(seed))
    found = twdpo_loss(chosen, rejected, beta=beta)
    margin = (chosen.policy.sum(-1) - chosen.reference.sum(-1)) - (rejected.policy.sum(-1) - rejected.reference.sum(-1))
    torch.testing.assert_close(found.losses, -torch.nn.functional.logsigmoid(beta * margin))
    torch.testing.assert_close(found.chosen_rewards, found.weighted_chosen_rewards)
    torch.testing.assert_close(found.rejected_logps, found.weighted_rejected_logps)


@given(SEEDS, BETAS, st.floats(0.1, 10.0))
def test_scaling_weights_is_scaling_beta(seed: int, beta: float, factor: float) -> None:
    chosen, rejected = sides(seed)
    scaled = (replace(side, weights=factor * side.weights) for side in (chosen, rejected))
    here = twdpo_loss(*scaled, beta=beta).losses
    torch.testing.assert_close(here, twdpo_loss(chosen, rejected, beta=factor * beta).losses)


@given(SEEDS, BETAS)
def test_nothing_to_learn_is_log_two(seed: int, beta: float) -> None:
    chosen, rejected = sides(seed)
    weightless = [replace(side, weights=torch.zeros_like(side.weights)) for side in (chosen, rejected)]
    untrained = [replace(side, policy=side.reference) for side in (chosen, rejected)]
    for pair in (weightless, untrained):
        found = twdpo_loss(pair[0], pair[1], beta=beta).losses
        torch.testing.assert_close(found, torch.full_like(found, math.log(2.0)))


@given(SEEDS, BETAS)
def test_swapping_the_sides(seed: int, beta: float) -> None:
    chosen, rejected = sides(seed)
    here, swapped = twdpo_loss(chosen, rejected, beta=beta), twdpo_loss(rejected, chosen, beta=beta)
    torch.testing.assert_close(here.losses - swapped.losses, -here.u)


@given(SEEDS, BETAS)
def test_order_of_tokens_and_common_shifts_change_nothing(seed: int, beta: float) -> None:
    chosen, rejected = sides(seed)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(chosen.policy.shape[1]))
    permuted = SideLogps(
        policy=chosen.policy[:, order], reference=chosen.reference[:, order], weights=chosen.weights[:, order]
    )
    shift = torch.from_numpy(rng.normal(size=tuple(rejected.policy.shape)))
    shifted = replace(rejected, policy=rejected.policy + shift, reference=rejected.reference + shift)
    expected = twdpo_loss(chosen, rejected, beta=beta).losses
    torch.testing.assert_close(twdpo_loss(permuted, shifted, beta=beta).losses, expected)


@given(SEEDS, BETAS)
def test_gradient_is_the_formula(seed: int, beta: float) -> None:
    """∂L/∂log π(y±_t) = ∓ β σ(−u) w±_t, nothing where the weight is zero, nothing into reference and weights."""
    chosen, rejected = (_with_gradient(_without_first_weight(side)) for side in sides(seed))
    found = twdpo_loss(chosen, rejected, beta=beta)
    torch.autograd.backward(found.losses.sum())
    slope = beta * torch.sigmoid(-found.u.detach())[:, None]
    for sign, side in ((-1.0, chosen), (1.0, rejected)):
        assert side.policy.grad is not None
        torch.testing.assert_close(side.policy.grad, sign * slope * side.weights.detach())
        assert bool((side.policy.grad[:, 0] == 0).all())
        assert side.reference.grad is None
        assert side.weights.grad is None


def _with_gradient(side: SideLogps) -> SideLogps:
    return SideLogps(
        policy=side.policy.requires_grad_(),
        reference=side.reference.requires_grad_(),
        weights=side.weights.requires_grad_(),
    )


def _without_first_weight(side: SideLogps) -> SideLogps:
    weights = side.weights.clone()
    weights[:, 0] = 0
    return replace(side, weights=weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_finite_differences(smoothing: float) -> None:
    chosen, rejected = sides(3)

    def losses(plus: Tensor, minus: Tensor) -> Tensor:
        pair = replace(chosen, policy=plus), replace(rejected, policy=minus)
        return twdpo_loss(*pair, beta=0.7, label_smoothing=smoothing).losses

    inputs = (chosen.policy.clone().requires_grad_(), rejected.policy.clone().requires_grad_())
    assert torch.autograd.gradcheck(losses, inputs)


def test_half_precision_is_summed_in_float32() -> None:
    """A thousand tokens: in bfloat16 the sum would stop growing."""
    side = make_side(0, pairs=1, tokens=2, dtype=torch.float32).policy
    ones = torch.ones(1, 1000, dtype=torch.bfloat16)
    chosen = SideLogps(policy=ones, reference=torch.zeros_like(ones), weights=ones)
    rejected = SideLogps(policy=side, reference=side, weights=side)
    found = twdpo_loss(chosen, rejected, beta=0.001)
    assert found.losses.dtype == torch.float32
    assert found.u.item() == pytest.approx(1.0)


def test_extreme_margins_stay_finite() -> None:
    far = torch.full((1, 1), 1e6)
    near = torch.zeros(1, 1)
    one = torch.ones(1, 1)
    lost: PairLosses = twdpo_loss(
        SideLogps(policy=-far, reference=near, weights=one),
        SideLogps(policy=far, reference=near, weights=one),
        beta=1.0,
    )
    assert lost.losses.item() == pytest.approx(2e6)
