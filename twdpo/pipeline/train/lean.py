"""Norms and gated MLPs that keep fewer activations for the backward pass, and compute the rest again there.

What is computed again is element-wise and cheap; the matrix products are not. Modules are replaced only where they give
the same numbers as before, which is tried. Not for: dropping all of a layer's activations (gradient checkpointing).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from twdpo.pipeline.cpu_linear import FastLinear, matmul_nt

_PLAIN = (nn.Linear, FastLinear)


def keep_less(model: nn.Module) -> int:
    """Replace the norms and MLPs of a model on a CPU that are known here; returns how many were.

    Parameters, names and results stay as they are. Harmless when repeated.
    """
    alike: dict[tuple[type, type], bool] = {}
    changed = 0
    for module in model.modules():
        lean = _lean_class(module)
        if lean is None:
            continue
        kind = (type(module), lean)
        if kind not in alike:
            alike[kind] = _same(module, lean)
        if alike[kind]:
            module.__class__ = lean
            changed += 1
    return changed


class LeanRMSNorm(nn.Module):
    """x · rsqrt(mean x² + ε) · weight, which keeps x and one number a token."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """As transformers' RMS norms of the Llama kind."""
        apply: Any = _RMSNorm.apply  # not annotated
        output: Tensor = apply(hidden_states, self.weight, self.variance_epsilon)
        return output


class LeanMLP(nn.Module):
    """down(act(gate(x)) · up(x)), which in float32 keeps gate(x) and up(x), not what is made of them."""

    gate_proj: nn.Linear
    up_proj: nn.Linear
    down_proj: nn.Linear
    act_fn: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """As transformers' gated MLPs."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        # An adapter may have come to the last layer since.
        one_matrix = type(self.down_proj) in _PLAIN
        if not one_matrix or gate.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            plain: Tensor = self.down_proj(self.act_fn(gate) * up)
            return plain
        apply: Any = _GatedDown.apply  # not annotated
        output: Tensor = apply(gate, up, self.down_proj.weight, self.act_fn)
        return output


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        gradient = gradients[0].to(scale.dtype)
        normed = x.to(scale.dtype) * scale
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        inner = gradient * weight.to(scale.dtype)
        along = (inner * normed).mean(-1, keepdim=True)
        return inner.sub_(normed.mul_(along)).mul_(scale).to(x.dtype), weight_gradient, None


class _GatedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, act_fn: nn.Module) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.act_fn = act_fn
        return matmul_nt((act_fn(gate) * up).flatten(0, -2), weight).view(*gate.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        with torch.enable_grad():
            gate_leaf, up_leaf = gate.detach().requires_grad_(), up.detach().requires_grad_()
            product = ctx.act_fn(gate_leaf) * up_leaf
        weight_gradient = None
        if ctx.needs_input_grad[2]:
            weight_gradient = matmul_nt(gradient.t(), product.detach().flatten(0, -2).t())
        upstream = matmul_nt(gradient, weight.t()).view_as(product)
        gate_gradient, up_gradient = torch.autograd.grad(product, [gate_leaf, up_leaf], upstream)
        return gate_gradient, up_gradient, weight_gradient, None


def _lean_class(module: nn.Module) -> type[nn.Module] | None:
    """What could stand in for a module, by its parts."""
    if isinstance(module, (LeanRMSNorm, LeanMLP)):
        return None
    parameters = dict(module.named_parameters(recurse=False))
    children = dict(module.named_children())
    if "RMSNorm" in type(module).__name__ and set(parameters) == {"weight"} and not children:
        on_cpu = parameters["weight"].device.type == "cpu"
        return LeanRMSNorm if on_cpu and hasattr(module, "variance_epsilon") else None
    if set(children) == {"gate_proj", "up_proj", "down_proj", "act_fn"} and not parameters:
        down = children["down_proj"]
        plain = isinstance(down, nn.Linear) and type(down) in _PLAIN and down.bias is None
        return LeanMLP if plain and down.weight.device.type == "cpu" and down.weight.dtype == torch.float32 else None
    return None


def _same(module: nn.Module, lean: type[nn.Module]) -> bool:
    """Whether a module gives the same output and gradient in its lean form."""
    weight = next(module.parameters())
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        x = torch.randn(2, 5, weight.shape[-1], dtype=weight.dtype, requires_grad=True)
        original = type(module)
        results = []
        for kind in (original, lean):
            module.__class__ = kind
            try:
                y = module(x)
                results.append((y.detach(), *torch.autograd.grad((y * torch.cos(y.detach())).sum(), x)))
            except (AttributeError, TypeError, RuntimeError):
                return False
            finally:
                module.__class__ = original
    pairs = zip(*results, strict=True)
    return all(bool(torch.allclose(one, other, rtol=1e-3, atol=1e-4)) for one, other in pairs)
