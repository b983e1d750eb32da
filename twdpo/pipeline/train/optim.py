"""The optimizer and the learning rate of every step. Not for: clipping and accumulation (`loop.py`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from twdpo.pipeline.extras import import_bitsandbytes


def learning_rate(peak: float, step: int, steps: int, warmup_ratio: float, scheduler: str = "cosine") -> float:
    """The rate of step `step` (0-based) of `steps`: linear warm-up from 0, then what `scheduler` says.

    That is a half cosine or a line to 0, or nothing, each as in transformers. A function of the step alone, so that
    there is no schedule to save.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if scheduler == "constant":
        return peak
    if scheduler == "linear":
        return peak * max(0.0, 1.0 - done)
    return peak * max(0.0, 0.5 * (1.0 + math.cos(math.pi * done)))


def make_optimizer(name: str, model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW with torch's defaults, fused where the device has it; `adamw_8bit` needs bitsandbytes.

    Only matrices decay. The learning rate is set before every step. Raises UsageError.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw_8bit":
        return _eight_bit(groups)
    try:
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    except RuntimeError:  # this device or type has no fused kernel
        return torch.optim.AdamW(groups, lr=0.0)


def _eight_bit(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    library = import_bitsandbytes("--optimizer adamw_8bit", "use --optimizer adamw")
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(groups, lr=0.0)
    return optimizer
