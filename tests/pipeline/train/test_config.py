"""The configuration of stage two: what is refused, and how shares are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from twdpo.config import resolve, to_yaml
from twdpo.errors import UsageError
from twdpo.pipeline.train import TrainConfig
from twdpo.pipeline.train.config import heldout_count, parse_eval_split


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"uncovered": "two"}, "--uncovered two is not known; choose zero or one"),
        ({"missing": "ignore"}, "--missing ignore"),
        ({"optimizer": "sgd"}, "--optimizer sgd"),
        ({"dtype": "float16"}, "--dtype float16"),
        ({"device": "tpu"}, "--device tpu"),
        ({"limit": 0}, "--limit 0 is too small; the least is 1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"micro_batch_size": 0}, "--micro-batch-size 0"),
        ({"max_steps": 0}, "--max-steps 0"),
        ({"eval_every": -1}, "--eval-every -1"),
        ({"weight_decay": float("nan")}, "--weight-decay nan"),
        ({"max_length": 4}, "--max-length 4"),
        ({"beta": 0.0}, "--beta 0.0 must be a number above 0"),
        ({"learning_rate": float("inf")}, "--learning-rate inf"),
        ({"epochs": -1.0}, "--epochs -1.0"),
        ({"uniform_mix": 1.5}, "--uniform-mix 1.5 is outside 0 to 1"),
        ({"warmup_ratio": -0.1}, "--warmup-ratio -0.1"),
        ({"label_smoothing": 0.5}, "--label-smoothing 0.5"),
        ({"scheduler": "step"}, "--scheduler step is not known; choose cosine or linear or constant"),
        ({"lora_rank": 0}, "--lora-rank 0 is too small; the least is 1"),
        ({"lora_rank": 4, "lora_alpha": 0.0}, "--lora-alpha 0.0 must be a number above 0"),
        ({"lora_rank": 4, "lora_targets": " , "}, "--lora-targets is empty; pass all-linear, or names"),
        ({"load_in_4bit": True}, "--load-in-4bit needs --lora-rank, such as --lora-rank 16"),
        ({"merge_adapter": True}, "--merge-adapter needs --lora-rank"),
        ({"lora_alpha": 32.0}, "--lora-alpha needs --lora-rank"),
        ({"lora_targets": "q_proj"}, "--lora-targets needs --lora-rank"),
        ({"eval_split": "1.5"}, "--eval-split 1.5"),
        ({"eval_split": "a b"}, "--eval-split 'a b'"),
    ],
)
def test_out_of_range(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig(**values)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("none", None),
        ("0", None),
        ("auto", "auto"),
        ("64", 64),
        ("0.05", 0.05),
        ("1e-1", 0.1),
        ("test", "test"),
        ("test_prefs", "test_prefs"),
    ],
)
def test_eval_split(text: str, meaning: object) -> None:
    assert parse_eval_split(text) == meaning
    assert type(parse_eval_split(text)) is type(meaning)


@pytest.mark.parametrize(
    ("split", "pairs", "held_out"),
    [
        ("auto", 49, 0),
        ("auto", 50, 1),
        ("auto", 60_000, 256),
        (0.5, 3, 2),
        (0.01, 3, 1),
        (0.9, 1, 0),
        (2, 3, 2),
        (None, 10, 0),
        ("test", 10, 0),
    ],
)
def test_heldout_count(split: float | int | str | None, pairs: int, held_out: int) -> None:
    assert heldout_count(split, pairs) == held_out


def test_something_is_left_to_train_on() -> None:
    with pytest.raises(UsageError, match="--eval-split 3 would leave no pair of 3"):
        heldout_count(3, 3)


def test_yaml_and_back(tmp_path: Path) -> None:
    config = TrainConfig(beta=0.1, eval_split="0.05", limit=7, sink_fix=False, epochs=0.5)
    file = tmp_path / "train.yaml"
    file.write_text(to_yaml(config), "utf-8")
    assert resolve(TrainConfig, str(file), {}) == config


def test_importing_is_cheap() -> None:
    code = (
        "import sys, twdpo.pipeline.train as t; t.TrainConfig(); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'pyarrow', 'accelerate')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
