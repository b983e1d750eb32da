"""A pair judged again: both orders by themselves, whose mean is what the cache has, or a refusal in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.tiny_models import CHATML, save_tiny
from twdpo.errors import DataError, ModelError, UsageError
from twdpo.pipeline.annotate import AnnotateConfig, annotate
from twdpo.pipeline.annotate.orders import judge_again
from twdpo.pipeline.annotate.weights import order_agreement
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import Recipe, WeightRow, WeightsCache

SHORT = "{question}\n[A]{answer_a}\n[B]{answer_b}\nBetter:"
PAIR = Pair(
    prompt=(Message(role="user", content="Say it"),), chosen=" It is good.\n", rejected="Nobody knows, maybe 👩‍👧."
)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe, WeightRow]:
    """A tiny judge's folder, and the recipe and row of its cache."""
    folder = tmp_path_factory.mktemp("orders")
    model = save_tiny(folder / "tiny", "llama", layers=3, context=512)
    (folder / "template.txt").write_text(SHORT)
    (folder / "pairs.jsonl").write_text(
        '{"prompt": "Say it", "chosen": " It is good.\\n", "rejected": "Nobody knows, maybe 👩‍👧."}\n'
        '{"prompt": "A longer one to read with it", "chosen": "yes and yes again", "rejected": "no"}\n',
        "utf-8",
    )
    annotate(
        AnnotateConfig(
            dataset=str(folder / "pairs.jsonl"),
            model=str(model),
            out=str(folder / "cache"),
            max_length=256,
            judge_template=str(folder / "template.txt"),
            device="cpu",
        )
    )
    with WeightsCache.open(folder / "cache") as cache:
        return model, cache.recipe, cache.get(PAIR.example_hash)


def test_the_mean_of_the_orders_is_what_the_cache_has(judged: tuple[Path, Recipe, WeightRow]) -> None:
    _, recipe, row = judged
    again = judge_again(recipe, PAIR, (0, 2), device="cpu")
    for name in ("chosen", "rejected"):
        first, second = getattr(again, name)
        stored = row.side(name)
        for side in (first, second):
            assert np.array_equal(side.starts, stored.starts)
            assert np.array_equal(side.ends, stored.ends)
            assert set(side.weights) == {0, 2}
            assert all(abs(weights.mean() - 1) < 1e-5 for weights in side.weights.values())
        for layer in (0, 2):
            mean = (first.weights[layer].astype(np.float64) + second.weights[layer]) / 2
            assert np.max(np.abs(mean - stored.weights[layer])) < 2**-10
            assert np.allclose(mean, again.row.side(name).weights[layer], atol=1e-6)
            assert not np.array_equal(first.weights[layer], second.weights[layer])
        agreement = order_agreement(first.weights[2], second.weights[2])
        assert agreement == pytest.approx(getattr(row, f"order_agreement_{name}"), abs=1e-4)
    assert again.row.judge_prob_cr == pytest.approx(row.judge_prob_cr, abs=1e-4)
    assert again.row.judge_prob_rc == pytest.approx(row.judge_prob_rc, abs=1e-4)


def test_refusals(judged: tuple[Path, Recipe, WeightRow], tmp_path: Path) -> None:
    model, recipe, _ = judged
    with pytest.raises(DataError, match="--orders needs the texts"):
        judge_again(recipe, None, (2,))
    with pytest.raises(UsageError, match="as --source attention does, and the weights of this cache are by uniform"):
        judge_again(replace(recipe, source="uniform", judge_model=""), PAIR, (2,))
    with pytest.raises(ModelError, match="does not exist"):
        judge_again(replace(recipe, judge_model=str(tmp_path / "none")), PAIR, (2,))
    with pytest.raises(ModelError, match="is not the one that made this cache.*chat_template_hash"):
        judge_again(replace(recipe, chat_template_hash="0" * 16), PAIR, (2,), device="cpu")
    # The judge's folder has changed since: another chat template in it.
    other = save_tiny(tmp_path / "other", "llama", layers=3, context=512, chat_template=CHATML.replace("\n", " "))
    with pytest.raises(ModelError, match="judge_revision.*chat_template_hash") as refused:
        judge_again(replace(recipe, judge_model=str(other)), PAIR, (2,), device="cpu")
    assert "\n" not in str(refused.value)
    with pytest.raises(DataError, match="cannot be judged"):
        judge_again(recipe, replace(PAIR, chosen="  "), (2,), device="cpu")
    assert model.is_dir()
