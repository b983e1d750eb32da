"""Which checkpoints stay, and that the best model of a run can be loaded at its end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.pipeline.train.conftest import World
from tests.pipeline.train.runs import StopAt, out_of, same_weights
from twdpo.errors import Interrupted
from twdpo.pipeline.train import TrainConfig, TrainProgress, train
from twdpo.pipeline.train.metrics import MetricsFile
from twdpo.pipeline.train.retention import best_before, best_step, drop_old


def evaluations(**losses: float) -> dict[int, dict[str, float]]:
    """Step → record, of s3=0.5 and the like."""
    return {int(name[1:]): {"step": float(name[1:]), "eval_loss": loss} for name, loss in losses.items()}


def checkpoints(out: Path, *steps: int) -> None:
    """Complete ones, as far as anyone looks who does not load them."""
    for step in steps:
        folder = out / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}")


def left(out: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (out / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("losses", "steps", "best"),
    [
        ({"s2": 0.6, "s4": 0.5, "s6": 0.7}, (2, 4, 6), 4),
        ({"s2": 0.6, "s4": 0.5, "s6": 0.7}, (2, 6), 2),
        ({"s2": 0.5, "s4": 0.5, "s6": 0.7}, (2, 4, 6), 4),
        ({"s2": math.nan, "s4": math.inf, "s6": 0.9}, (2, 4, 6), 6),
        ({"s0": 0.1, "s6": 0.9}, (2, 4, 6), 6),
        ({"s0": 0.1}, (2, 4, 6), None),
        ({}, (2, 4), None),
    ],
    ids=["lowest", "only with a checkpoint", "of equals the latest", "finite", "step 0 has none", "none", "nothing"],
)
def test_the_best_of_evaluated_steps(losses: dict[str, float], steps: tuple[int, ...], best: int | None) -> None:
    assert best_step(evaluations(**losses), steps) == best


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints(tmp_path, 2, 4, 6, 8, 10)
    drop_old(tmp_path, 2, evaluations(s4=0.4, s8=0.5))
    assert left(tmp_path) == [4, 8, 10]
    drop_old(tmp_path, 1, evaluations(s4=0.4, s8=0.3))
    assert left(tmp_path) == [8, 10]
    drop_old(tmp_path, 1, {})
    assert left(tmp_path) == [10]


def test_the_last_model_counts_as_evaluated_without_a_checkpoint(tmp_path: Path) -> None:
    checkpoints(tmp_path, 4, 8)
    assert best_before(tmp_path, 9, evaluations(s4=0.4, s9=0.3)) is None
    assert best_before(tmp_path, 9, evaluations(s4=0.4, s9=0.4)) is None
    assert best_before(tmp_path, 9, {}) is None
    best = best_before(tmp_path, 9, evaluations(s4=0.4, s8=0.5, s9=0.5))
    assert best is not None
    assert (best.step, best.checkpoint.name) == (4, "step-00000004")


class Watch(TrainProgress):
    """Which checkpoints there are whenever a line is written."""

    def __init__(self, out: Path) -> None:
        self.seen: list[list[int]] = []
        self._out = out

    def record(self, metrics: object) -> None:
        """Look."""
        if (self._out / "checkpoints").is_dir():
            self.seen.append(left(self._out))


def overshooting(world: World, name: str) -> TrainConfig:
    """A run whose margins overshoot what label smoothing wants: its best model is not its last."""
    changes: dict[str, Any] = {"learning_rate": 0.03, "warmup_ratio": 0.9, "max_grad_norm": 100.0, "epochs": 3.0}
    changes |= {"label_smoothing": 0.45, "eval_every": 2, "keep_checkpoints": 1}
    return world.config(out=out_of(world, name), **changes)


def test_the_best_model_is_beside_the_last(world: World) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = overshooting(world, "run")
    out = Path(config.out)
    watch = Watch(out)
    result = train(config, watch)
    losses = {int(r["step"]): r["eval_loss"] for r in MetricsFile(out / "metrics.jsonl").read() if "eval_loss" in r}
    lowest = min((s for s in losses if s), key=losses.__getitem__)
    assert result.best_step == lowest < result.steps
    # Never more than the last, the best, and between a save and the evaluation of its step one to be compared.
    assert max(map(len, watch.seen)) <= 2
    assert not (out / "checkpoints").exists()
    # A run of the same schedule that is stopped there has the very parameters.
    with pytest.raises(Interrupted):
        train(overshooting(world, "again"), StopAt("training", lowest + 1))
    [stopped] = (Path(out_of(world, "again")) / "checkpoints").glob(f"step-{lowest:08d}")
    there = load_file(stopped / "model.safetensors")
    best = AutoModelForCausalLM.from_pretrained(out / "best")
    assert all(torch.equal(tensor, best.state_dict()[name]) for name, tensor in there.items())
    last = AutoModelForCausalLM.from_pretrained(out)
    assert not torch.equal(last.lm_head.weight, best.lm_head.weight)
    assert AutoTokenizer.from_pretrained(out / "best").chat_template
    assert f"after step {lowest}: that model is in `best/`" in (out / "README.md").read_text("utf-8")
    assert f"{losses[lowest]:.4f} after step {lowest}, the lowest" in (out / "best" / "README.md").read_text("utf-8")


def test_interruptions_change_neither_the_last_nor_the_best(world: World) -> None:
    whole = train(overshooting(world, "whole"))
    config = overshooting(world, "parts")
    for stop in (StopAt("training", 5), StopAt("evaluation", 2), StopAt("training", 4)):
        with pytest.raises(Interrupted):
            train(config, stop)
    parts = train(config)
    assert parts.best_step == whole.best_step
    assert same_weights(whole.out, parts.out)
    assert same_weights(whole.out / "best", parts.out / "best")


def test_where_the_last_is_the_best_there_is_no_other(world: World) -> None:
    result = train(world.config(epochs=2.0))
    assert result.best_step is None
    assert not (result.out / "best").exists()
    assert "no checkpoint of the run has a lower one" in (result.out / "README.md").read_text("utf-8")


def test_starting_over_removes_what_the_other_run_left(world: World) -> None:
    config = overshooting(world, "run")
    train(config)
    assert (Path(config.out) / "best").is_dir()
    settings = world.config(out=config.out, max_steps=2, eval_split="none", resume=False)
    train(settings)
    assert not (Path(config.out) / "best").exists()
    lines = (Path(config.out) / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
