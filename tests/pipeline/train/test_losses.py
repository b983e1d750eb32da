"""SimPO and IPO with weights: oracles a token at a time, TRL's own functions, hand-computed cases, whole runs."""

from __future__ import annotations

import importlib
import importlib.util
import math
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import StopAt, out_of, records, same_weights
from tests.pipeline.train.test_loss import SEEDS, make_side, sides
from twdpo.errors import Interrupted, UsageError
from twdpo.pipeline.train import TrainConfig, train
from twdpo.pipeline.train.loss import SideLogps, twdpo_loss
from twdpo.pipeline.train.losses import ipo_loss, loss_of, simpo_loss
from twdpo.pipeline.train.objectives import OBJECTIVES, unusual

BETAS = st.floats(0.05, 5.0)


def padded(seed: int) -> tuple[SideLogps, SideLogps]:
    """Sides whose rows end in padding of zeros, and say how many tokens they have."""
    found = []
    for side in sides(seed):
        counts = (side.policy != 0).sum(-1)
        found.append(replace(side, tokens=counts))
    return found[0], found[1]


def tokens_of(side: SideLogps, pair: int) -> list[tuple[float, float, float]]:
    """(log π, log π_ref, w) of each token that is no padding."""
    assert side.tokens is not None
    count = int(side.tokens[pair])
    columns = (side.policy, side.reference, side.weights)
    return list(zip(*(column[pair, :count].tolist() for column in columns), strict=True))


def simpo_oracle(chosen: SideLogps, rejected: SideLogps, beta: float, gamma: float) -> NDArray[np.float64]:
    losses = []
    for pair in range(len(chosen.policy)):
        means = []
        for side in (chosen, rejected):
            rows = tokens_of(side, pair)
            means.append(sum(w * logp for logp, _, w in rows) / sum(w for _, _, w in rows))
        losses.append(math.log1p(math.exp(-(beta * (means[0] - means[1]) - gamma))))
    return np.array(losses)


def ipo_oracle(chosen: SideLogps, rejected: SideLogps, beta: float, mean: bool) -> NDArray[np.float64]:
    losses = []
    for pair in range(len(chosen.policy)):
        h = 0.0
        for sign, side in ((1, chosen), (-1, rejected)):
            rows = tokens_of(side, pair)
            total = sum(w * (logp - reference) for logp, reference, w in rows)
            h += sign * (total / sum(w for _, _, w in rows) if mean else total)
        losses.append((h - 1 / (2 * beta)) ** 2)
    return np.array(losses)


@given(SEEDS, BETAS, st.floats(0.0, 3.0))
def test_simpo_agrees_with_its_definition(seed: int, beta: float, gamma: float) -> None:
    chosen, rejected = padded(seed)
    found = simpo_loss(chosen, rejected, beta=beta, gamma=gamma).losses.numpy()
    np.testing.assert_allclose(found, simpo_oracle(chosen, rejected, beta, gamma), rtol=1e-9)


@given(SEEDS, BETAS, st.booleans())
def test_ipo_agrees_with_its_definition(seed: int, beta: float, mean: bool) -> None:
    chosen, rejected = padded(seed)
    found = ipo_loss(chosen, rejected, beta=beta, mean=mean).losses.numpy()
    np.testing.assert_allclose(found, ipo_oracle(chosen, rejected, beta, mean), rtol=1e-9)


def test_by_hand() -> None:
    """Two tokens against one. SimPO: means (−1·1 − 4·3)/4 = −3.25 and −2; IPO: h = (1·1 + 3·2) − 1 = 6."""
    chosen = SideLogps(
        policy=torch.tensor([[-1.0, -4.0]]), reference=torch.tensor([[-2.0, -6.0]]), weights=torch.tensor([[1.0, 3.0]])
    )
    rejected = SideLogps(
        policy=torch.tensor([[-2.0, 0.0]]),
        reference=torch.tensor([[-3.0, 0.0]]),
        weights=torch.tensor([[1.0, 0.0]]),
        tokens=torch.tensor([1]),
    )
    simpo = simpo_loss(chosen, rejected, beta=2.0, gamma=0.5)
    assert simpo.u.item() == pytest.approx(2 * (-3.25 + 2) - 0.5)
    assert simpo.losses.item() == pytest.approx(math.log1p(math.exp(3.0)))
    assert simpo.chosen_rewards.item() == pytest.approx(2 * -2.5)
    assert simpo.weighted_chosen_rewards.item() == pytest.approx(2 * -3.25)
    assert simpo.rejected_rewards.item() == simpo.weighted_rejected_rewards.item() == pytest.approx(-4.0)
    assert ipo_loss(chosen, rejected, beta=0.1).losses.item() == pytest.approx((6.0 - 5.0) ** 2)
    assert ipo_loss(chosen, rejected, beta=0.1, mean=True).losses.item() == pytest.approx((7 / 4 - 1 - 5) ** 2)


@cache
def _trl() -> Any:
    """TRL's trainer of losses without a reference; it lies among what TRL warns may change."""
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("trl.experimental.cpo").CPOTrainer


@given(SEEDS, BETAS)
def test_even_weights_are_those_of_trl(seed: int, beta: float) -> None:
    """TRL's functions, given what its trainers give them: mean log-probs for SimPO, mean ratios for IPO."""
    theirs: Any = _trl().cpo_loss
    chosen, rejected = padded(seed)
    even = [replace(s, weights=(s.policy != 0).to(s.policy)) for s in (chosen, rejected)]
    counts = [side.tokens for side in even]
    accelerator = SimpleNamespace(device="cpu")
    common = {"alpha": 0.0, "beta": beta, "accelerator": accelerator, "label_smoothing": 0.1, "simpo_gamma": 0.7}
    means = [side.policy.sum(-1) / n for side, n in zip(even, counts, strict=True)]
    expected, *rewards = theirs(SimpleNamespace(loss_type="simpo", **common), *means)
    found = simpo_loss(even[0], even[1], beta=beta, gamma=0.7, label_smoothing=0.1)
    torch.testing.assert_close(found.losses, expected)
    for ours in (
        (found.chosen_rewards, found.rejected_rewards),
        (found.weighted_chosen_rewards, found.weighted_rejected_rewards),
    ):
        torch.testing.assert_close(list(ours), rewards)
    ratios = [(side.policy - side.reference).sum(-1) / n for side, n in zip(even, counts, strict=True)]
    expected, *_ = theirs(SimpleNamespace(loss_type="ipo", **common), *ratios)
    torch.testing.assert_close(ipo_loss(even[0], even[1], beta=beta, mean=True).losses, expected)


@given(SEEDS, st.floats(0.1, 10.0))
def test_simpo_knows_no_scale_of_weights_and_no_reference(seed: int, factor: float) -> None:
    chosen, rejected = padded(seed)
    other = [replace(s, weights=factor * s.weights, reference=s.reference - 1.0) for s in (chosen, rejected)]
    here, there = (simpo_loss(a, b, beta=2.0, gamma=1.0) for a, b in ((chosen, rejected), (other[0], other[1])))
    torch.testing.assert_close(here.losses, there.losses)
    torch.testing.assert_close(here.chosen_rewards, there.chosen_rewards)


@given(SEEDS, BETAS)
def test_ipo_and_twdpo_mean_the_same_by_u(seed: int, beta: float) -> None:
    chosen, rejected = padded(seed)
    torch.testing.assert_close(ipo_loss(chosen, rejected, beta=beta).u, twdpo_loss(chosen, rejected, beta=beta).u)


@pytest.mark.parametrize("name", ["simpo", "ipo", "ipo mean"])
def test_gradients(name: str) -> None:
    """Finite differences; nothing into weights and reference; nothing where a weight is 0."""
    chosen, rejected = padded(3)
    weights = chosen.weights.clone()
    weights[:, 0] = 0
    weights[0] = 0  # a side without any weight
    chosen = replace(chosen, weights=weights.requires_grad_(), reference=chosen.reference.clone().requires_grad_())

    def losses(plus: torch.Tensor, minus: torch.Tensor) -> torch.Tensor:
        pair = replace(chosen, policy=plus), replace(rejected, policy=minus)
        if name == "simpo":
            return simpo_loss(*pair, beta=1.3, gamma=0.4, label_smoothing=0.1).losses
        return ipo_loss(*pair, beta=0.4, mean=name == "ipo mean").losses

    inputs = (chosen.policy.clone().requires_grad_(), rejected.policy.clone().requires_grad_())
    assert torch.autograd.gradcheck(losses, inputs)
    torch.autograd.backward(losses(*inputs).sum())
    assert inputs[0].grad is not None
    assert bool((inputs[0].grad[:, 0] == 0).all())
    assert bool((inputs[0].grad[0] == 0).all())
    assert weights.grad is None
    assert chosen.reference.grad is None


def test_a_side_without_weight_leaves_the_loss_finite() -> None:
    side = make_side(0, dtype=torch.float32)
    nothing = replace(side, weights=torch.zeros_like(side.weights))
    assert bool(simpo_loss(nothing, nothing, beta=2.0, gamma=1.0).losses.isfinite().all())
    assert bool(ipo_loss(nothing, nothing, beta=0.1, mean=True).losses.isfinite().all())


@pytest.mark.parametrize(
    ("given", "beta", "gamma"),
    [
        ({}, 0.005, None),
        ({"loss": "ipo"}, 0.1, None),
        ({"loss": "simpo"}, 2.0, 1.0),
        ({"loss": "simpo", "beta": 2.5}, 2.5, 1.25),
        ({"loss": "simpo", "simpo_gamma": 0.0}, 2.0, 0.0),
        ({"beta": 0.3}, 0.3, None),
    ],
)
def test_each_loss_has_defaults_of_its_own(given: dict[str, Any], beta: float, gamma: float | None) -> None:
    config = TrainConfig(**given).settled()
    assert (config.beta, config.simpo_gamma) == (beta, gamma)
    assert config.settled() == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": "kto"}, "--loss kto is not known; choose twdpo or simpo or ipo"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "--label-smoothing is not defined for --loss ipo"),
        ({"simpo_gamma": 1.0}, "--simpo-gamma needs --loss simpo"),
        ({"loss": "ipo", "simpo_gamma": 1.0}, "--simpo-gamma needs --loss simpo"),
        ({"loss": "simpo", "simpo_gamma": -1.0}, "--simpo-gamma -1.0 must be"),
        ({"loss": "simpo", "ipo_mean": True}, "--ipo-mean needs --loss ipo"),
        ({"loss": "simpo", "beta": 0.0}, "--beta 0.0 must be a number above 0"),
    ],
)
def test_what_a_loss_does_not_have_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        TrainConfig(**given)


def test_a_beta_of_another_loss_is_noticed() -> None:
    assert "unusual with --loss simpo" in str(unusual("simpo", 0.005))
    assert "unusual with --loss twdpo" in str(unusual("twdpo", 2.0))
    assert all(unusual(name, objective.beta) is None for name, objective in OBJECTIVES.items())


def test_the_configuration_chooses() -> None:
    chosen, rejected = padded(5)
    for config, expected in (
        (TrainConfig(beta=0.3, label_smoothing=0.1), twdpo_loss(chosen, rejected, beta=0.3, label_smoothing=0.1)),
        (TrainConfig(loss="simpo", beta=3.0), simpo_loss(chosen, rejected, beta=3.0, gamma=1.5)),
        (TrainConfig(loss="ipo", ipo_mean=True), ipo_loss(chosen, rejected, beta=0.1, mean=True)),
    ):
        torch.testing.assert_close(loss_of(config.settled())(chosen, rejected).losses, expected.losses)


@pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])
def test_simpo_trains_without_a_reference(world: World, streaming: bool) -> None:
    """No store is made, figures are finite, margins grow, and the run is written down with its numbers."""
    notes = StopAt("never", 1)
    config = world.config(loss="simpo", beta=None, streaming=streaming, out=out_of(world, "simpo"), max_steps=4)
    result = train(config, notes)
    assert not config.reference_folder.exists()
    lines = records(result.out)
    assert all(math.isfinite(value) for line in lines for value in line.values())
    name = "eval_rewards/weighted_margins"
    assert result.after[name] > result.before[name] != 0.0
    written = yaml.safe_load((result.out / "train.yaml").read_text("utf-8"))
    assert (written["loss"], written["beta"], written["simpo_gamma"]) == ("simpo", 2.0, 1.0)
    card = (result.out / "README.md").read_text("utf-8")
    assert "token-weighted SimPO" in card
    assert "loss simpo, beta 2, gamma 1" in card
    assert "policy and reference" not in card
    assert result.loss == "simpo"


def test_a_simpo_run_goes_on_where_it_stopped(world: World) -> None:
    whole = train(world.config(loss="simpo", out=out_of(world, "whole"), max_steps=4, beta=2.0))
    stopped = world.config(loss="simpo", out=out_of(world, "stopped"), max_steps=4, beta=2.0)
    with pytest.raises(Interrupted):
        train(stopped, StopAt("training", 3))
    assert train(stopped).resumed_at == 3
    assert same_weights(whole.out, Path(stopped.out))


def test_ipo_starts_at_its_own_loss(world: World) -> None:
    """With π = π_ref, h is 0 and the loss 1/(2β)²."""
    result = train(world.config(loss="ipo", beta=0.5, out=out_of(world, "ipo"), max_steps=3, learning_rate=1e-4))
    assert result.before["eval_loss"] == pytest.approx(1.0, abs=1e-5)
    assert result.after["eval_loss"] < 1.0
