"""The settings and files of the comparison in `conftest.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: Pairs of the data set.
PAIRS = 24


def settings(world: Path, **changes: Any) -> dict[str, Any]:
    return {
        "dataset": str(world / "pairs.jsonl"),
        "model": str(world / "model"),
        "out": str(world / "comparison"),
        "betas": (0.1, 1.0),
        "seeds": (1,),
        "resamples": 200,
        # With even weights on every token, attention is DPO.
        "arms": {"attention": {}, "even": {"uniform_mix": 1.0, "uncovered": "one"}},
        "annotate": {"max_length": 512, "judge_template": str(world / "template.txt")},
        "train": {"eval_split": "8", "batch_size": 8, "learning_rate": 3e-3, "max_length": 256, "device": "cpu"},
    } | changes


def run_file(world: Path, arm: str, beta: str, seed: int) -> Path:
    return world / "comparison" / "runs" / arm / f"beta-{beta}" / f"seed-{seed}" / "run.json"


def attention(world: Path) -> Path:
    return world / "comparison" / "caches" / "attention"
