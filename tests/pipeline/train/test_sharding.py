"""FSDP2 with two processes on a CPU: the numbers of one process, and state that any number goes on from."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.train.conftest import World
from tests.pipeline.train.processes import ROOT, complaints, run
from tests.pipeline.train.runs import out_of, records, same_weights
from tests.pipeline.train.test_launch import NAN_IN_ONE, NO_SPACE_IN_ONE, UNEVEN, assert_same_course
from twdpo.errors import UsageError
from twdpo.pipeline.train import train
from twdpo.pipeline.train.sharding import Sharding, gather_parameters, put_parameters

SHARDED: dict[str, Any] = {"num_processes": 2, "accelerate_config": "fsdp2"}

STOP_AFTER_FIVE = """
def step(self):
    if self._step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(self)
Loop._train_step = step
"""


@pytest.fixture(autouse=True)
def workers_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the tests themselves, since threads decide the order of sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def assert_close_weights(here: Path, there: Path) -> None:
    one, other = load_file(here / "model.safetensors"), load_file(there / "model.safetensors")
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-4)


def test_two_processes_give_the_losses_of_one(world: World) -> None:
    """Uneven numbers of micro-batches, processes without a pair, reference log-probs, evaluation, the saved model."""
    changes = UNEVEN | {"micro_batch_size": 2}
    alone = train(world.config(out=out_of(world, "alone"), **changes))
    config = world.config(out=out_of(world, "both"), reference_cache=out_of(world, "r"), **changes, **SHARDED)
    both = train(config)
    assert_same_course(alone.out, both.out, 20)
    assert_close_weights(alone.out, both.out)


@pytest.mark.slow
def test_zero3_is_the_same(world: World) -> None:
    """Without DeepSpeed; to the bit, since it is FSDP2 by another name."""
    one = train(world.config(out=out_of(world, "fsdp2"), max_steps=3, **SHARDED))
    other = train(world.config(out=out_of(world, "zero3"), max_steps=3, **SHARDED | {"accelerate_config": "zero3"}))
    assert records(one.out) == records(other.out)
    assert same_weights(one.out, other.out)


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(world: World) -> None:
    plain = train(world.config(out=out_of(world, "plain"), max_steps=4))
    recomputed = train(world.config(out=out_of(world, "again"), max_steps=4, gradient_checkpointing=True, **SHARDED))
    assert_same_course(plain.out, recomputed.out, 4)


@pytest.mark.slow
def test_killed_and_resumed_exactly(world: World, tmp_path: Path) -> None:
    whole = world.config(out=out_of(world, "whole"), **SHARDED)
    parts = replace(whole, out=out_of(world, "parts"))
    train(whole)
    killed = run(parts, tmp_path / "kill", STOP_AFTER_FIVE)
    assert killed.returncode == 1
    [line] = complaints(killed.stderr)
    assert "was ended by SIGKILL" in line
    assert "step-00000004 is kept: run the same command again to go on" in line
    assert train(parts).resumed_at == 4
    assert same_weights(Path(whole.out), Path(parts.out))
    assert records(Path(whole.out)) == records(Path(parts.out))


@pytest.mark.slow
def test_a_checkpoint_is_for_any_number_of_processes(world: World, tmp_path: Path) -> None:
    """Written by two with divided parameters, gone on from by one, by two without; and the other way round."""
    alone = train(world.config(out=out_of(world, "alone")))
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (SHARDED, {}),
        ({"num_processes": 2}, SHARDED),
        (SHARDED, {"num_processes": 2}),
    ]
    for number, (first, second) in enumerate(ways):
        config = world.config(out=out_of(world, str(number)))
        killed = run(replace(config, **first), tmp_path / "kill", STOP_AFTER_FIVE)
        assert killed.returncode == 1
        result = train(replace(config, **second))
        assert result.resumed_at == 4
        assert_same_course(alone.out, result.out, 7)
        assert_close_weights(alone.out, result.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [(NAN_IN_ONE, "twdpo: the loss of step 4 is not finite with row "), (NO_SPACE_IN_ONE, "twdpo: cannot write there")],
    ids=["nan", "disk"],
)
def test_what_fails_in_one_process_stops_all(world: World, tmp_path: Path, fault: str, expected: str) -> None:
    failed = run(world.config(micro_batch_size=2, **SHARDED), tmp_path / "fault", fault)
    assert failed.returncode == 1
    [line] = complaints(failed.stderr)
    assert line.startswith(expected)


def test_what_accelerate_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken out of the environment, where transformers and accelerate would act on it too."""
    assert Sharding.asked() is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    assert Sharding.asked() == Sharding(reshard_after_forward=False, offload=True)
    assert "ACCELERATE_USE_FSDP" not in os.environ
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match="only FSDP2 is supported; set fsdp_version: 2"):
        Sharding.asked()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none")
    assert Sharding.asked() == Sharding()
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    with pytest.raises(UsageError, match="of DeepSpeed only ZeRO-3 is supported; set zero_stage: 3"):
        Sharding.asked()


def test_parameters_under_any_of_their_names() -> None:
    """A tied tensor stands in a file once; which of its names it has depends on who wrote it."""
    tied = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    tied["b"].weight = tied["a"].weight
    assert list(gather_parameters(tied, keep=True)) == ["a.weight"]
    assert gather_parameters(tied, keep=False) == {}
    for name in ("a.weight", "b.weight"):
        value = torch.rand(2, 2)
        put_parameters(tied, {name: value})
        assert torch.equal(tied["a"].weight, value)
    with pytest.raises(KeyError, match=r"no tensor a\.weight"):
        put_parameters(tied, {})


def test_persistent_buffers_are_kept() -> None:
    """Such as the router's bias of a mixture of experts; what a model computes for itself is not."""

    def made(bias: float) -> torch.nn.Module:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        model[0].register_buffer("correction", torch.full((2,), bias))
        model[0].register_buffer("computed", torch.zeros(2), persistent=False)
        return model

    one, other = made(0.5), made(0.0)
    whole = gather_parameters(one, keep=True)
    assert whole.keys() == one.state_dict().keys() == {"0.weight", "0.bias", "0.correction"}
    put_parameters(other, whole)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    del whole["0.correction"]
    with pytest.raises(KeyError, match=r"no tensor 0\.correction"):
        put_parameters(other, whole)
