"""TIS-DPO's layout: one number for each token of an answer alone, as weights or as raw log-ratios."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.importing.published import pairs, sentencepiece_tokenizer
from twdpo.errors import DataError, ModelError
from twdpo.pipeline.importing.layout import PairWeights, UnusableWeights
from twdpo.pipeline.importing.tis import TisDpo, from_log_ratios, is_tis
from twdpo.pipeline.tokens import LiteralTokenizer
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights

COLUMNS = ("prompt", "chosen", "rejected", "chosen_weight", "rejected_weight")
PAIR = Pair(prompt=(Message(role="user", content="q"),), chosen=" It is 四 👩‍👩‍👧.\n", rejected="No")


def layout(tokenizer: Any = None, *, log_ratios: bool = False) -> TisDpo:
    made = tokenizer or tiny_tokenizer()
    return TisDpo(COLUMNS, tokenizer=lambda: made, judge_model=None, log_ratios=log_ratios)


def as_row(pair: Pair, tokenizer: Any, surplus: int = 0, seed: int = 0) -> dict[str, Any]:
    """Random weights for every token of both answers, and for some more."""
    rng = np.random.default_rng(seed)
    counts = {
        side: len(tokenizer(text, add_special_tokens=False)["input_ids"]) + surplus
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected))
    }
    weights = {f"{side}_weight": (rng.random(count) * 3).round(2).tolist() for side, count in counts.items()}
    return {"prompt": "q", "chosen": pair.chosen, "rejected": pair.rejected, **weights}


def sides(weights: PairWeights) -> dict[str, SideWeights]:
    return {"chosen": weights.chosen, "rejected": weights.rejected}


@pytest.mark.parametrize("surplus", [-1, 0, 1])
@pytest.mark.parametrize("pair", pairs()[:6], ids=lambda pair: str(pair.row))
def test_weights_keep_their_proportions_and_get_mean_one(pair: Pair, surplus: int) -> None:
    tokenizer = tiny_tokenizer()
    row = as_row(pair, tokenizer, surplus)
    for (name, side), text in zip(
        sides(layout(tokenizer).weights(row, pair)).items(), (pair.chosen, pair.rejected), strict=True
    ):
        n = len(tokenizer(text, add_special_tokens=False)["input_ids"]) - (surplus == -1)
        assert len(side.starts) == len(side.ends) == n
        expected = np.asarray(row[f"{name}_weight"][:n])
        np.testing.assert_allclose(side.weights[0], expected / expected.mean(), rtol=1e-6)
        if not LiteralTokenizer(tokenizer).spells_special(text):
            tokens = LiteralTokenizer(tokenizer).encode(text)
            np.testing.assert_array_equal(side.starts, tokens.starts[:n])
            np.testing.assert_array_equal(side.ends, tokens.ends[:n])


def test_a_sentencepiece_tokenizer_and_one_that_trims_and_cuts() -> None:
    tokenizer = sentencepiece_tokenizer()
    found = layout(tokenizer).weights(as_row(PAIR, tokenizer), PAIR).chosen
    tokens = LiteralTokenizer(tokenizer).encode(PAIR.chosen)
    np.testing.assert_array_equal(found.starts, tokens.starts)
    np.testing.assert_array_equal(found.ends, tokens.ends)

    from tokenizers import processors

    trims = tiny_tokenizer()
    row = as_row(PAIR, trims)
    trims.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trims.backend_tokenizer.enable_truncation(3)
    side = layout(trims).weights(row, PAIR).chosen
    tokens = LiteralTokenizer(tiny_tokenizer()).encode(PAIR.chosen)
    np.testing.assert_array_equal(side.starts, tokens.starts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen_weight": None}, "`chosen_weight` is missing"),
        ({"rejected_weight": []}, "`rejected_weight` is an empty list"),
        ({"rejected_weight": [0.0, 0.0]}, "`rejected_weight` is zero throughout"),
        (
            {"rejected_weight": [-0.5, 1.0]},
            "`rejected_weight` holds a negative number: are they raw log-ratios? see --log-ratios",
        ),
        ({"rejected_weight": [1.0, float("inf")]}, "`rejected_weight` holds a number that is not finite"),
        ({"rejected_weight": [1e308, 1e308]}, "the sum of `rejected_weight` is not finite"),
        ({"rejected_weight": [True, False]}, "`rejected_weight` holds something other than numbers"),
        ({"rejected_weight": [1.0, 1.0, 1.0]}, "there are not as many weights as tokens"),
        (
            {"chosen_weight": [1.0] * 99, "rejected_weight": [1.0] * 99},
            "there are not as many weights as tokens: the tokenizer is another (see --tokenizer)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_imported(change: dict[str, Any], reason: str) -> None:
    row = as_row(PAIR, tiny_tokenizer())
    assert len(row["rejected_weight"]) == 2
    made = layout()
    made.weights(row, PAIR)
    with pytest.raises(UnusableWeights) as caught, np.errstate(over="ignore"):
        made.weights(row | change, PAIR)
    assert reason in str(caught.value)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9))
def test_the_published_transform(ratios: list[float]) -> None:
    for side, sign in (("chosen", -1), ("rejected", 1)):
        expected = [0.7 + (min(max(sign * ratio, -1.5), 1.5) + 1.5) * (1.3 - 0.7) / 3 for ratio in ratios]
        np.testing.assert_allclose(from_log_ratios(np.asarray(ratios), side), expected, atol=1e-12)


def test_raw_log_ratios() -> None:
    """What the two models favour differently counts, in the direction of each side."""
    row = as_row(PAIR, tiny_tokenizer())
    row["rejected_weight"] = [9.0, -9.0]
    row["chosen_weight"] = [-9.0] + [0.0] * (len(row["chosen_weight"]) - 1)
    found = layout(log_ratios=True).weights(row, PAIR)
    np.testing.assert_allclose(found.rejected.weights[0], [1.3, 0.7], rtol=1e-6)
    assert found.chosen.weights[0][0] / found.chosen.weights[0][1] == pytest.approx(1.3)
    assert found.chosen.weights[0].mean() == pytest.approx(1.0)


def test_recipes_tell_log_ratios_from_weights() -> None:
    recipes = [layout(log_ratios=log_ratios).recipe for log_ratios in (False, True)]
    assert [recipe.source for recipe in recipes] == ["import:tis", "import:tis:log_ratios"]
    assert {recipe.layers for recipe in recipes} == {(0,)}
    assert {(recipe.judge_model, recipe.dtype, recipe.orders) for recipe in recipes} == {("", "unknown", ())}


def test_columns_and_tokenizers_that_will_not_do() -> None:
    assert is_tis(COLUMNS)
    assert not is_tis(COLUMNS[:-1])
    with pytest.raises(DataError, match="no column `rejected_weight`; is --format tis right"):
        TisDpo(COLUMNS[:-1], tokenizer=tiny_tokenizer, judge_model=None, log_ratios=False)
    with pytest.raises(ModelError, match="gives no character offsets"):
        TisDpo(COLUMNS, tokenizer=object, judge_model=None, log_ratios=False)
