"""Log-probs from hidden states and one matrix: against plain autograd, in value and gradient, for every chunk size."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from twdpo.pipeline.train.linear_logps import HeadRules, linear_logps

RULES = [HeadRules(), HeadRules(scale=0.25), HeadRules(cap=3.0), HeadRules(scale=2.0, cap=5.0)]
D, V = 6, 11


def inputs(tokens: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias and targets."""
    torch.manual_seed(seed)
    hidden, weight, bias = (torch.randn(*size, dtype=dtype) for size in ((tokens, D), (V, D), (V,)))
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.randint(0, V, (tokens,))


def plain(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rules: HeadRules) -> Tensor:
    """The formula, step by step."""
    logits = hidden @ weight.T + (0.0 if bias is None else bias)
    logits = rules.scale * logits
    if rules.cap is not None:
        logits = rules.cap * torch.tanh(logits / rules.cap)
    return logits.log_softmax(-1)[torch.arange(len(targets)), targets]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_values_and_gradients(rules: HeadRules, chunk: int) -> None:
    hidden, weight, bias, targets = inputs(7)
    upstream = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0, 3.0, -1.0], dtype=torch.float64)
    found = linear_logps(hidden, weight, bias, targets, chunk=chunk, dtype=torch.float64, rules=rules)
    expected = plain(hidden, weight, bias, targets, rules)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((y * upstream).sum(), [hidden, weight, bias]) for y in (found, expected)]
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-11, atol=1e-12)


def test_finite_differences() -> None:
    hidden, weight, bias, targets = inputs(5)

    def function(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        rules = HeadRules(scale=0.5, cap=4.0)
        return linear_logps(h, w, b, targets, chunk=2, dtype=torch.float64, rules=rules)

    assert torch.autograd.gradcheck(function, (hidden, weight, bias))


@given(st.integers(0, 20), st.integers(1, 25), st.integers(0, 10**6))
def test_chunks_change_nothing(tokens: int, chunk: int, seed: int) -> None:
    hidden, weight, _, targets = inputs(tokens, seed, torch.float32)
    upstream = torch.randn(tokens) * (torch.rand(tokens) < 0.7)
    found = []
    for size in (chunk, 1000):
        logps = linear_logps(hidden, weight, None, targets, chunk=size, dtype=torch.float32, rules=HeadRules())
        found.append((logps, *torch.autograd.grad((logps * upstream).sum(), [hidden, weight])))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


def test_a_token_without_upstream_gradient_costs_no_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from twdpo.pipeline.train import linear_logps as module

    rows: list[int] = []
    multiply = module.matmul_nt
    monkeypatch.setattr(module, "matmul_nt", lambda a, b: (rows.append(a.shape[0]), multiply(a, b))[1])
    hidden, weight, _, targets = inputs(6)
    logps = linear_logps(hidden, weight, None, targets, chunk=2, dtype=torch.float64, rules=HeadRules())
    assert rows == [2, 2, 2]
    rows.clear()
    (logps * torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0, 1.0])).sum().backward()
    # The last chunk's logits are still there; the one between needs nothing; of the first, one row.
    assert rows == [2, V, 1, 1, V]
    assert hidden.grad is not None
    assert not hidden.grad[[0, 2, 3]].any()


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, _, targets = inputs(4)
    with torch.no_grad():
        logps = linear_logps(hidden, weight, None, targets, chunk=4, dtype=torch.float64, rules=HeadRules())
    assert logps.grad_fn is None


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, bias, targets = inputs(4)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    linear_logps(hidden, weight, bias, targets, chunk=3, dtype=torch.float64, rules=HeadRules()).sum().backward()
    assert weight.grad is None
    assert bias.grad is None
    assert hidden.grad is not None


def test_bfloat16_gives_float32_near_the_exact_values() -> None:
    hidden, weight, _, targets = inputs(30, dtype=torch.float32)
    exact = linear_logps(hidden, weight, None, targets, chunk=8, dtype=torch.float32, rules=HeadRules())
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_logps(hidden, weight, None, targets, chunk=8, dtype=torch.bfloat16, rules=HeadRules())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.1)
    gradients = [torch.autograd.grad(y.sum(), [hidden, weight]) for y in (rough, exact)]
    for here, there in pairwise(zip(*gradients, strict=True)):
        assert here[0].dtype == there[0].dtype == torch.float32
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, rtol=0.1, atol=0.1)
