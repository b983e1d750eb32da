"""Linear layers on processors where oneDNN multiplies float32 matrices faster than the library that torch takes.

torch's CPU builds use MKL for float32, which on AMD's processors does without their 512-bit instructions: about 210
GFLOP/s on two cores of a Zen 5 against 450 of oneDNN, which torch carries as well. The numbers are float32 in both;
only the order of the sums differs. Not for: bfloat16, which goes through oneDNN anyway, or accelerators.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

#: How many products are added up one after the other where sums go in pieces.
_PIECE = 192
_CPUINFO = Path("/proc/cpuinfo")


@cache
def onednn_is_faster() -> bool:
    """Whether float32 matrices should go through oneDNN here.

    Decided by the processor's make, not by a measurement: a run that goes on must take the same way as before.
    """
    backends: Any = torch.backends  # its functions are not annotated
    if backends.cpu.get_cpu_capability() != "AVX512" or not backends.mkldnn.is_available():
        return False
    try:
        amd = "AuthenticAMD" in _CPUINFO.read_text("utf-8")
    except OSError:
        return False
    return amd and _works()


def use_fast_linear(model: nn.Module) -> int:
    """Let every plain float32 linear layer of a model on this CPU multiply with oneDNN; returns how many do.

    Parameters, names and types stay as they are. Harmless when repeated.
    """
    changed = 0
    if not onednn_is_faster():
        return changed
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.__class__ = FastLinear
            changed += 1
    return changed


def use_fast_exact_linear(model: nn.Module) -> int:
    """As `use_fast_linear`, for reading numbers rather than training: sums in pieces, as exact as torch's own products.

    Transposes the weights in memory, which their users do not see. The output head stays as it is. Not for training.
    """
    changed = 0
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    if not onednn_is_faster():
        return changed
    for module in model.modules():
        if type(module) not in (nn.Linear, FastLinear) or module is head or not isinstance(module, nn.Linear):
            continue
        if module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
            module.weight.data = module.weight.data.t().contiguous().t()
            module.__class__ = FastExactLinear
            changed += 1
    return changed


class FastLinear(nn.Linear):
    """A linear layer that multiplies float32 matrices with oneDNN; made of an `nn.Linear` by `use_fast_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x Wᵀ + b."""
        # A model that is divided among GPUs is loaded on the CPU and moved.
        plain = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if not plain or self.weight.dtype != torch.float32 or not input.numel():
            return super().forward(input)
        apply: Any = _Linear.apply  # not annotated
        output: Tensor = apply(input, self.weight, self.bias)
        return output


class FastExactLinear(nn.Linear):
    """A linear layer of float32 without gradients that adds up short sums; see `use_fast_exact_linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """x Wᵀ + b."""
        if input.device.type != "cpu" or input.dtype != torch.float32 or not input.numel():
            return super().forward(input)
        flat = input.reshape(-1, input.shape[-1])
        return exact_matmul_nt(flat, self.weight, self.bias).view(*input.shape[:-1], -1)


def exact_matmul_nt(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """a bᵀ + bias, without gradients; where oneDNN is the faster way, in pieces of K.

    oneDNN adds up all K products one after the other, which rounds up to twice as much as torch's own products do. Only
    a transposed b goes in pieces: oneDNN takes hundreds of times as long over parts of others.
    """
    if not (onednn_is_faster() and a_MK.dtype == b_NK.dtype == torch.float32 and a_MK.device.type == "cpu"):
        return torch.nn.functional.linear(a_MK, b_NK, bias_N)
    piece = _PIECE if b_NK.stride(0) == 1 else a_MK.shape[1]
    product = _multiply(a_MK[:, :piece], b_NK[:, :piece], bias_N)
    for start in range(piece, a_MK.shape[1], piece):
        product += _multiply(a_MK[:, start : start + piece], b_NK[:, start : start + piece], None)
    return product


def matmul_nt(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """a bᵀ; through oneDNN where that is the faster way. Both may be transposed views."""
    if onednn_is_faster() and a_MK.dtype == b_NK.dtype == torch.float32 and a_MK.device.type == "cpu":
        return _multiply(a_MK, b_NK, None)
    return a_MK @ b_NK.t()


def _multiply(a_MK: Tensor, b_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(a_MK, b_NK, bias_N, "none", [], "")
    return product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_NK)
        return _multiply(x.reshape(-1, x.shape[-1]), weight_NK, bias_N).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_NK = ctx.saved_tensors
        gradient_MN = gradients[0].reshape(-1, gradients[0].shape[-1])
        wanted = ctx.needs_input_grad
        input_gradient = _multiply(gradient_MN, weight_NK.t(), None).view_as(x) if wanted[0] else None
        x_MK = x.reshape(-1, x.shape[-1])
        weight_gradient = _multiply(gradient_MN.t(), x_MK.t(), None) if wanted[1] else None
        bias_gradient = gradient_MN.sum(0) if wanted[2] else None
        return input_gradient, weight_gradient, bias_gradient


def _works() -> bool:
    """Whether this build of torch has the operation, and it does what it must with transposed views as well."""
    a, b = torch.linspace(-1, 1, 24).view(3, 8), torch.linspace(-2, 1, 40).view(5, 8)
    try:
        same = torch.allclose(_multiply(a, b, None), a @ b.t(), rtol=1e-4, atol=1e-5)
        return same and torch.allclose(_multiply(a.t(), b[:3].t(), None), a.t() @ b[:3], rtol=1e-4, atol=1e-5)
    except (AttributeError, RuntimeError):
        return False
