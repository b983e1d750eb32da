"""What processes do together, as one process alone sees it; with two it is tested in test_launch and test_sharding."""

from __future__ import annotations

import pytest
import torch

from twdpo.errors import DataError, TrainingError
from twdpo.pipeline.train import launch
from twdpo.pipeline.train.processes import together
from twdpo.pipeline.train.ranks import Ranks


@pytest.fixture
def alone() -> Ranks:
    return Ranks.join("cpu")


def test_alone_nothing_is_shared(alone: Ranks) -> None:
    assert (alone.main, alone.rank, alone.count, alone.sharding, alone.load_on) == (True, 0, 1, None, "cpu")
    assert alone.collect([1, 2]) == [1, 2]
    assert torch.equal(alone.total(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))
    assert alone.gather_parameters(torch.nn.Linear(1, 1)) is None


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
