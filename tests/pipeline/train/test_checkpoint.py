"""Checkpoints: to the bit and back, whole or not there, and refused where they belong to another run."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from twdpo.errors import StorageError, TrainingError
from twdpo.pipeline.train import TrainConfig
from twdpo.pipeline.train.checkpoint import (
    FOLDER,
    Position,
    last_checkpoint,
    load_checkpoint,
    read_position,
    refuse_changes,
    save_checkpoint,
    storing_tensors,
)
from twdpo.pipeline.train.optim import make_optimizer

POSITION = Position(step=3, window={"pairs": 2}, config=asdict(TrainConfig().settled()), data="d1")


class Tied(nn.Module):
    """Two names for one parameter, as embeddings and LM head often are."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.LayerNorm(3)


def trained(seed: int) -> tuple[Tied, torch.optim.Optimizer]:
    """A model and its optimizer after two steps."""
    model = Tied(seed)
    optimizer = make_optimizer("adamw", model, 0.1)
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: Tied, optimizer: torch.optim.Optimizer) -> None:
    """One step with noise in it."""
    optimizer.param_groups[0]["lr"] = 0.1
    noise = torch.rand(4, 3)
    model.head(model.norm(model.embedding(torch.arange(4)) + noise)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_going_on_is_bit_exact(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    path = save_checkpoint(tmp_path, model, optimizer, POSITION)
    step(model, optimizer)
    other, other_optimizer = trained(1)
    load_checkpoint(path, other, other_optimizer)
    step(other, other_optimizer)
    assert read_position(path) == POSITION
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert other.head.weight is other.embedding.weight


def test_eight_bit_moments_go_on_bit_exactly(tmp_path: Path) -> None:
    """Quantized moments, their scales and the maps that all entries share; small matrices keep float32 moments."""

    def made(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64), nn.Linear(64, 2))
        optimizer = make_optimizer("adamw_8bit", model, 0.1)
        for _ in range(2):
            step_8bit(model, optimizer)
        return model, optimizer

    def step_8bit(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        model(torch.rand(4, 64)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = made(0)
    path = save_checkpoint(tmp_path, model, optimizer, POSITION)
    other, other_optimizer = made(1)
    assert {tensor.dtype for tensor in load_file(path / "optimizer.safetensors").values()} >= {torch.uint8}
    load_checkpoint(path, other, other_optimizer)
    for _ in range(3):
        state = torch.get_rng_state()
        step_8bit(model, optimizer)
        torch.set_rng_state(state)
        step_8bit(other, other_optimizer)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_only_what_is_trained_is_kept(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    model.norm.requires_grad_(False)
    path = save_checkpoint(tmp_path, model, optimizer, POSITION)
    assert set(load_file(path / "model.safetensors")) == {"embedding.weight"}
    other, other_optimizer = trained(1)
    other.norm.requires_grad_(False)
    norm = other.norm.weight.clone()
    load_checkpoint(path, other, other_optimizer)
    assert torch.equal(other.norm.weight, norm)
    assert torch.equal(other.head.weight, model.head.weight)
    with pytest.raises(TrainingError, match="is damaged"):
        load_checkpoint(path, *trained(1))


def test_the_newest_is_found_and_half_written_ones_removed(tmp_path: Path) -> None:
    model, optimizer = trained(0)
    assert last_checkpoint(tmp_path) is None
    for number in (1, 2, 10):
        save_checkpoint(tmp_path, model, optimizer, replace(POSITION, step=number))
    (tmp_path / FOLDER / ".tmp-crashed").mkdir()
    last = last_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "step-00000010"
    names = [f"step-{number:08d}" for number in (1, 2, 10)]
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == names


def test_a_crash_while_the_same_step_is_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by Ctrl-C right after a checkpoint: there is one at any moment."""
    model, optimizer = trained(0)
    path = save_checkpoint(tmp_path, model, optimizer, POSITION)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        assert save_checkpoint(tmp_path, model, optimizer, POSITION) == path
    assert last_checkpoint(tmp_path) == path
    load_checkpoint(path, *trained(1))


def test_no_pickle(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, *trained(0), POSITION)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "optimizer.json"])
def test_damage_is_said_in_one_line(tmp_path: Path, name: str) -> None:
    path = save_checkpoint(tmp_path, *trained(0), POSITION)
    (path / name).write_bytes(b"no")
    with pytest.raises(TrainingError, match="is damaged") as caught:
        load_checkpoint(path, *trained(1))
    assert "\n" not in str(caught.value)


def test_a_damaged_position(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, *trained(0), POSITION)
    (path / "state.json").write_text('{"format": 1, "step": 3}', "utf-8")
    with pytest.raises(TrainingError, match="is damaged"):
        read_position(path)
    (path / "state.json").write_text('{"format": 99}', "utf-8")
    with pytest.raises(TrainingError, match="written by another version"):
        read_position(path)


def test_another_run_is_refused_with_what_differs() -> None:
    path = Path("trained/checkpoints/step-00000003")
    asked = asdict(TrainConfig(beta=0.1, log_every=5, out="elsewhere", learning_rate=2e-6).settled())
    with pytest.raises(TrainingError) as caught:
        refuse_changes(path, POSITION, asked, "d1")
    message = str(caught.value)
    assert "--beta 0.005 there, 0.1 asked for; --learning-rate 1e-06 there, 2e-06 asked for" in message
    assert "--log-every" not in message
    refuse_changes(path, POSITION, asdict(TrainConfig(log_every=5, save_every=7).settled()), "d1")
    with pytest.raises(TrainingError, match="the pairs or their weights have changed"):
        refuse_changes(path, POSITION, asdict(TrainConfig().settled()), "d2")


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="the disk is full"), storing_tensors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), storing_tensors(tmp_path):
        raise SafetensorError("something else")
