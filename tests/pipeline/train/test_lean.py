"""Norms and MLPs that keep less: the same numbers and gradients as transformers' own, and less kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.fixtures.tiny_models import FAMILIES, VOCABULARY, tiny_model
from twdpo.pipeline.train.lean import LeanMLP, LeanRMSNorm, keep_less

LEAN = {"llama", "mistral", "qwen2", "qwen3"}


def kept_bytes(model: Any, ids: torch.Tensor) -> int:
    """Bytes of different activations that the graph of a forward pass holds on to."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in seen.items() if place not in own)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_the_same_logits_and_gradients(family: str) -> None:
    plain = tiny_model(family)
    lean = copy.deepcopy(plain)
    changed = keep_less(lean)
    assert (changed > 0) == (family != "gpt_neox")
    assert keep_less(lean) == 0
    ids = torch.randint(0, VOCABULARY - 5, (2, 17), generator=torch.Generator().manual_seed(0))
    outputs = [model(input_ids=ids, use_cache=False).logits for model in (plain, lean)]
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-5, atol=1e-5)
    gradients = [
        torch.autograd.grad((y * torch.cos(y.detach())).sum(), list(model.parameters()))
        for y, model in zip(outputs, (plain, lean), strict=True)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert set(plain.state_dict()) == set(lean.state_dict())


@pytest.mark.parametrize("family", sorted(LEAN))
def test_less_is_kept(family: str) -> None:
    plain = tiny_model(family)
    lean = copy.deepcopy(plain)
    keep_less(lean)
    ids = torch.randint(0, VOCABULARY - 5, (1, 40))
    assert kept_bytes(lean, ids) < 0.75 * kept_bytes(plain, ids)


def test_finite_differences() -> None:
    torch.manual_seed(0)
    model = tiny_model()
    norm = copy.deepcopy(model.model.norm).double()
    norm.__class__ = LeanRMSNorm
    x = torch.randn(2, 3, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (x,))


def test_frozen_weights_get_no_gradient() -> None:
    model = tiny_model()
    keep_less(model)
    layer = model.model.layers[0]
    layer.requires_grad_(False)
    x = torch.randn(1, 4, 32, requires_grad=True)
    layer.mlp(layer.input_layernorm(x)).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())


def test_an_adapter_that_comes_later_is_heard() -> None:
    """The last matrix of an MLP may be wrapped after the MLP was replaced."""
    mlp = tiny_model().model.layers[0].mlp
    holder = nn.Sequential(mlp)
    assert keep_less(holder) == 1
    assert type(mlp) is LeanMLP
    x = torch.randn(1, 4, 32)
    before = mlp(x)
    mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Linear(32, 32))
    assert not torch.allclose(mlp(x), before)


def test_autocast_computes_in_bfloat16() -> None:
    mlp = tiny_model().model.layers[0].mlp
    keep_less(nn.Sequential(mlp))
    with torch.autocast("cpu", torch.bfloat16):
        assert mlp(torch.randn(1, 4, 32)).dtype == torch.bfloat16


def test_modules_that_only_look_alike_stay() -> None:
    class OtherRMSNorm(nn.Module):
        """Adds one to its weight, as Gemma's do."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((32,), 0.5))
            self.variance_epsilon = 1e-6

        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            """Norm times one plus weight."""
            scale = torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return (1 + self.weight) * hidden_states * scale

    holder = nn.Sequential(OtherRMSNorm())
    assert keep_less(holder) == 0
    assert type(holder[0]) is OtherRMSNorm
