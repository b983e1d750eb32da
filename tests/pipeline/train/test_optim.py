"""The learning rate against transformers' schedule, and the optimizer's groups."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twdpo.errors import UsageError
from twdpo.pipeline.train.optim import learning_rate, make_optimizer


@given(st.integers(1, 60), st.sampled_from([0.0, 0.03, 0.1, 0.5, 1.0]))
def test_the_rate_is_that_of_transformers(steps: int, warmup_ratio: float) -> None:
    from math import ceil

    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(optimizer, ceil(warmup_ratio * steps), steps)
    for step in range(steps):
        assert learning_rate(0.5, step, steps, warmup_ratio) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()


def test_only_matrices_decay() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = make_optimizer("adamw", model, 0.1)
    decay = {tuple(p.shape): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay == {(2, 3): 0.1, (2,): 0.0}


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_eight_bit_says_what_to_install() -> None:
    with pytest.raises(UsageError, match="pip install bitsandbytes"):
        make_optimizer("adamw_8bit", torch.nn.Linear(3, 2), 0.0)
