"""The learning rate against transformers' schedule, and the optimizer's groups."""

from __future__ import annotations

import sys
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twdpo.errors import UsageError
from twdpo.pipeline.train.config import SCHEDULERS
from twdpo.pipeline.train.optim import learning_rate, make_optimizer


@given(st.integers(1, 60), st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]), st.sampled_from(SCHEDULERS))
def test_the_rate_is_that_of_transformers(steps: int, warmup_ratio: float, scheduler: str) -> None:
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if scheduler == "constant" else scheduler
    schedule = get_scheduler(name, optimizer, ceil(warmup_ratio * steps), steps)
    for step in range(steps):
        rate = learning_rate(0.5, step, steps, warmup_ratio, scheduler)
        assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_only_matrices_decay() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer("adamw", model, 0.1)
    decay = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {(2, 3): 0.1, (2,): 0.0}


def test_eight_bit_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        make_optimizer("adamw_8bit", torch.nn.Linear(3, 2), 0.0)
