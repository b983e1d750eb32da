"""A model's LM head by itself: logits from hidden states, a chunk at a time and without a gradient.

For measures over the whole vocabulary. Not for: the log-probs that are trained on (`logps.py`, `linear_logps.py`).
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from twdpo.pipeline.train.linear_logps import HeadRules, linear_logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What `TokenLogps.states` gives, as logits.

    module: the head, or None where the states are logits already. is_matrix: whether it is a weight and a bias alone.
    autocast: compute in this type, or None for the head's own.
    """

    module: Any
    is_matrix: bool
    rules: HeadRules
    autocast: torch.dtype | None = None

    @torch.no_grad()
    def logits(self, states_ND: Tensor) -> Tensor:
        """float32[N, V] (float64 for a model in it), a tensor of its own, where the head lies."""
        if self.module is None:
            return states_ND.to(torch.promote_types(states_ND.dtype, torch.float32), copy=True)
        weight = self.module.weight
        states_ND = states_ND.to(weight.device)
        if self.is_matrix:
            dtype = self.autocast or weight.dtype
            return linear_logits(states_ND, weight, self.module.bias, dtype=dtype, rules=self.rules)
        with torch.autocast(weight.device.type, self.autocast) if self.autocast else nullcontext():
            logits_NV: Tensor = self.rules.apply(self.module(states_ND))
        return logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))

    def copy(self) -> Head:
        """The same with parameters of its own, which stay as they are when the model is trained on."""
        return replace(self, module=copy.deepcopy(self.module))
