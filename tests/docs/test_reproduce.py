"""docs/reproduce.md: its table is the script's, and both scripts' arithmetic is what a hand computes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.scripts import loaded
from twdpo import recipes
from twdpo.config import resolve
from twdpo.pipeline.train import TrainConfig
from twdpo.weights_cache import SideWeights

PAGE = Path(__file__).resolve().parents[2] / "docs/reproduce.md"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, Any]]:
    with loaded(["reproduce", "scale_model", "differences"]) as modules:
        yield modules


def test_the_page_holds_the_table(scripts: dict[str, Any]) -> None:
    assert scripts["reproduce"].table() in PAGE.read_text("utf-8")


def test_operations_of_a_forward_pass_by_hand(scripts: dict[str, Any]) -> None:
    shape = scripts["scale_model"].decoder(hidden=4, layers=1, heads=1, kv_heads=1, head_dim=4, mlp=8, words=5)
    lengths = scripts["reproduce"].Lengths(prompt=10, chosen=3, rejected=2)
    # 160 parameters over 15 tokens; a chosen token sees the prompt and its own side; the head over 5 tokens.
    attended = sum(range(1, 11)) + (11 + 12 + 13) + (11 + 12)
    assert scripts["reproduce"].forward(shape, lengths) == 2 * 160 * 15 + 4 * 4 * attended + 2 * 4 * 5 * 5


def test_gpu_hours_by_hand(scripts: dict[str, Any]) -> None:
    assert scripts["reproduce"].hours(3600 * 989e12, 0.5) == pytest.approx(2, rel=1e-3)


def test_every_set_up_is_a_recipe_with_the_published_step(scripts: dict[str, Any]) -> None:
    for setup in scripts["reproduce"].SETUPS:
        config: TrainConfig = resolve(TrainConfig, str(recipes.find(setup.name)), {})
        steps = math.ceil(setup.pairs / config.batch_size)
        assert setup.evaluations == 2 + (steps - 1) // config.eval_every


def test_margin_and_loss_by_hand(scripts: dict[str, Any]) -> None:
    ratios = np.array([1.0, 2.0]), np.array([0.5])
    weights = np.array([2.0, 0.5], np.float32), np.array([4.0], np.float32)
    assert scripts["differences"].margin(ratios, weights) == pytest.approx(2 + 1 - 2)
    assert scripts["differences"].mean_loss([0.0], 0.1) == pytest.approx(math.log(2))
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 2
    assert scripts["differences"].mean_loss([10.0, -10.0], 0.1) == pytest.approx(expected)


def test_variation_cosine_and_ratio_by_hand(scripts: dict[str, Any]) -> None:
    variation = scripts["differences"].total_variation
    assert variation(np.array([1, 1, 2]), np.array([6, 3, 3])) == pytest.approx(0.25)
    cosine, ratio = scripts["differences"].cosine_and_ratio(torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0]))
    assert (cosine, ratio) == pytest.approx((0.6, 5))


def test_the_control_keeps_the_weights_and_the_first_place(scripts: dict[str, Any]) -> None:
    starts = np.arange(40, dtype=np.int32)
    side = SideWeights(starts=starts, ends=starts + 1, weights={k: np.arange(40, dtype=np.float32) + k for k in (3, 9)})
    moved = scripts["differences"].shuffled({"chosen": side})["chosen"].weights
    assert sorted(moved[3]) == sorted(side.weights[3])
    assert moved[3][0] == 3
    assert not np.array_equal(moved[3], side.weights[3])
    assert np.array_equal(moved[9] - 9, moved[3] - 3)  # every layer in the same order


@pytest.mark.parametrize(
    ("answer", "weights", "kept"),
    [
        ("one two", [1, 3, 2], [0.5, 1.5]),
        ("one two.\n", [1, 3, 2], [1]),
        ("so.", [2], [1]),
        ("a b", [0, 0, 3], [1, 1]),
    ],
    ids=["a word at the end", "a full stop at the end", "nothing would be left", "all weight was there"],
)
def test_the_last_tokens_are_left_out(
    scripts: dict[str, Any], answer: str, weights: list[float], kept: list[float]
) -> None:
    starts = np.arange(len(weights), dtype=np.int32)
    side = SideWeights(starts=starts, ends=starts + 1, weights={0: np.array(weights, np.float32)})
    cut = scripts["differences"].without_last(side, answer)
    assert cut.weights[0] == pytest.approx(np.array(kept))
    assert len(cut.starts) == len(cut.ends) == len(kept)
    assert replace(cut, weights={}).starts[0] == 0
