"""What processes do together, as one process alone sees it; with two it is tested in test_launch and test_sharding."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from accelerate.state import AcceleratorState

from twdpo.errors import DataError, TrainingError, UsageError
from twdpo.pipeline.train import launch
from twdpo.pipeline.train.processes import together
from twdpo.pipeline.train.ranks import Ranks, process_group
from twdpo.pipeline.train.sharding import Sharding


@pytest.fixture
def alone() -> Ranks:
    return Ranks.join("cpu")


def test_alone_nothing_is_shared(alone: Ranks) -> None:
    assert (alone.main, alone.rank, alone.count, alone.sharding, alone.load_on) == (True, 0, 1, None, "cpu")
    assert alone.collect([1, 2]) == [1, 2]
    assert torch.equal(alone.total(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert alone.gather_parameters(torch.nn.Linear(1, 1)) is None


def test_the_loss_is_divided_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever accelerate's own configuration says of gradient accumulation."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.ones(1, requires_grad=True)
    Ranks.join("cpu").accelerator.backward(weight.sum() * 8.0)
    assert weight.grad is not None
    assert weight.grad.item() == 8.0


def test_accelerate_set_up_for_something_else(alone: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    assert alone.accelerator.mixed_precision == "no"
    monkeypatch.setitem(AcceleratorState._shared_state, "_mixed_precision", "bf16")
    with pytest.raises(UsageError, match="used in this process before, train in a process of its own") as caught:
        Ranks.join("cpu")
    assert "\n" not in str(caught.value)


def test_how_processes_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more patience than a slow disk needs; parts in the memory of the host are exchanged without NCCL."""
    offload, both = Sharding(offload=True), "cuda:nccl,cpu:gloo"
    assert process_group(offload, "cuda").to_kwargs() == {"timeout": timedelta(hours=2)}  # alone, nothing is exchanged
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert process_group(offload, "cuda").to_kwargs() == {"backend": both, "timeout": timedelta(hours=2)}
    for sharding, device in ((offload, "cpu"), (Sharding(), "cuda"), (None, "cuda"), (None, "cpu")):
        assert process_group(sharding, device).to_kwargs() == {"timeout": timedelta(hours=2)}


def test_fillers_only_where_they_are_needed(alone: Ranks) -> None:
    assert list(alone.evened([["a"], ["b", "c"]], "x")) == [(["a"], True), (["b", "c"], True)]
    assert list(alone.evened([["a"]], "x", least=1)) == [(["a"], True)]
    assert list(alone.evened([], "x", least=1)) == [(["x"], False)]
    assert list(alone.evened([], "x")) == []


def test_accord_lets_the_error_through(alone: Ranks) -> None:
    with pytest.raises(DataError, match="bad"), alone.accord():
        raise DataError("bad")
    with pytest.raises(ZeroDivisionError), alone.accord():
        raise ZeroDivisionError
    with alone.accord():
        pass


def test_who_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """The main process always; another only what it met alone, once the processes have met."""
    alone, all_of_them = TrainingError("here"), together(TrainingError("everywhere"))
    assert launch.reports(alone)
    assert launch.reports(all_of_them)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.reports(alone)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    assert launch.reports(alone)
    assert not launch.reports(all_of_them)
    monkeypatch.setenv("RANK", "0")
    assert launch.reports(all_of_them)
