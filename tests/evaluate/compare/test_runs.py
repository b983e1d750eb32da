"""What a run is known by, and what of an earlier one is taken over."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.evaluate.compare.world import attention, settings
from tests.fixtures.tiny_models import save_tiny
from twdpo.evaluate.compare import CompareConfig, Comparison, compare, runs
from twdpo.evaluate.compare.arms import Arm
from twdpo.evaluate.compare.prepared import Prepared
from twdpo.evaluate.compare.runs import plan


def test_a_run_is_known_by_the_content_of_its_model_and_pairs(world: Path, done: Comparison, tmp_path: Path) -> None:
    """Moved, they give nothing to do; the same name with another content does everything anew."""
    out = tmp_path / "out"
    shutil.copytree(world / "comparison", out)
    shutil.copytree(world / "model", tmp_path / "model")
    shutil.copy(world / "pairs.jsonl", tmp_path / "moved.jsonl")
    moved = settings(world, out=str(out), weights=str(attention(world)), betas=(0.1,))
    moved |= {"dataset": str(tmp_path / "moved.jsonl"), "model": str(tmp_path / "model"), "judge": str(world / "model")}
    assert compare(CompareConfig(**moved)).executed == 0
    save_tiny(tmp_path / "model", "llama", seed=1)
    assert compare(CompareConfig(**moved)).executed == 3


def test_the_precision_that_auto_stands_for_decides(world: Path, done: Comparison, tmp_path: Path) -> None:
    """A comparison begun on a CPU is not gone on with in bfloat16."""
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)))
    arm = replace(done_arm(world), arm=CompareConfig(**config).expanded[0])

    def fingerprint(**changes: Any) -> str:
        told = CompareConfig(**config | {"train": config["train"] | changes})
        return plan(told, [arm], {"dpo": 1.0})[0].fingerprint

    assert fingerprint() == fingerprint(dtype="auto") == fingerprint(dtype="float32") != fingerprint(dtype="bfloat16")


def test_an_unfinished_run_is_gone_on_with_only_where_everything_is_as_it_was(
    world: Path, done: Comparison, tmp_path: Path
) -> None:
    """A checkpoint knows names, such as that of its weights, and refuses others."""
    config = settings(world, out=str(tmp_path / "out"), weights=str(attention(world)))
    arm = replace(done_arm(world), arm=CompareConfig(**config).expanded[0])
    run, *_ = plan(CompareConfig(**config), [arm], {"dpo": 1.0})
    assert not runs.is_trained(run)
    checkpoint = Path(run.training.out) / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    assert not runs.is_trained(run)
    assert checkpoint.is_dir()
    moved = replace(run, training=replace(run.training, weights="elsewhere"))
    assert moved.fingerprint == run.fingerprint
    assert not runs.is_trained(moved)
    assert not checkpoint.exists()
    Path(run.training.out).mkdir(parents=True)
    (Path(run.training.out) / "config.json").touch()
    assert runs.is_trained(run)  # finished, it is what it is wherever it was made


def done_arm(world: Path) -> Prepared:
    """An arm of the finished comparison."""
    return Prepared(
        arm=Arm(name="dpo"),
        weights=attention(world),
        train=(),
        heldout=(),
        prompts=(),
        summed=1.0,
        digest="d",
        skipped={},
    )
