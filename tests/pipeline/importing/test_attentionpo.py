"""AttentionPO's layout: what stage one made comes back from it; everything else is left out with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.importing.published import LAYERS, as_row, assert_same, judged, pairs, sentencepiece_tokenizer
from twdpo.errors import DataError, UsageError
from twdpo.pipeline.annotate.prompt import PromptBuilder, load_template
from twdpo.pipeline.importing.attentionpo import AttentionPO, is_attentionpo
from twdpo.pipeline.importing.layout import PairWeights, UnusableWeights
from twdpo.preferences import Message, Pair, parse_row
from twdpo.weights_cache import SideWeights, WeightRow

Row = dict[str, Any]


def layout(rows: list[Row], tokenizer: Any, layers: str | None = None, judge: str | None = None) -> AttentionPO:
    return AttentionPO(list(rows[0]), tokenizer=lambda: tokenizer, judge_model=judge, layers=layers)


def imported(rows: list[Row], tokenizer: Any, layers: str | None = None) -> list[PairWeights]:
    made = layout(rows, tokenizer, layers)
    found = [parse_row(row, i) for i, row in enumerate(rows)]
    return [made.weights(row, pair) for row, pair in zip(rows, found, strict=True) if isinstance(pair, Pair)]


def as_weight_row(weights: PairWeights, key: str) -> WeightRow:
    return WeightRow(example_hash=key, chosen=weights.chosen, rejected=weights.rejected)


@pytest.mark.parametrize("make", [tiny_tokenizer, sentencepiece_tokenizer])
def test_what_stage_one_made_comes_back(make: Callable[[], Any]) -> None:
    rows, own = judged(make())
    found = imported(rows, make())
    assert len(found) == len(own) == len(pairs())
    for weights, expected in zip(found, own, strict=True):
        assert_same(as_weight_row(weights, expected.example_hash), expected)
        assert not weights.truncated


def test_the_published_cut_to_length(make_pair: Callable[..., Pair]) -> None:
    """Answers of too long pairs lose their ends, and the row says so."""
    tokenizer = tiny_tokenizer()
    long = "Four is 四 and 👩‍👩‍👧 " * 40
    rows, own = judged(tokenizer, [make_pair(chosen=long, rejected="No.")], max_length=900)
    (weights,) = imported(rows, tokenizer)
    assert own[0].truncated
    assert weights.truncated
    assert int(weights.chosen.ends[-1]) < len(long) / 2
    assert_same(as_weight_row(weights, own[0].example_hash), own[0])


@pytest.mark.parametrize("dropped", [1, 2, 3, 4])
def test_tokens_dropped_before_the_end_marker(dropped: int, make_pair: Callable[..., Pair]) -> None:
    """Up to three are what the published code drops; four mean that the answer was cut."""
    tokenizer = tiny_tokenizer()
    (row,), (own,) = judged(tokenizer, [make_pair(chosen="It is qxz #%&", rejected="It is qxz #%&*")])
    for name in ("tokens", *(f"weights_{layer}" for layer in LAYERS)):
        row[f"chosen_{name}"] = row[f"chosen_{name}"][:-dropped]
    for layer in LAYERS:
        total = sum(row[f"chosen_weights_{layer}"])
        row[f"chosen_weights_{layer}"] = [weight / total for weight in row[f"chosen_weights_{layer}"]]
    (weights,) = imported([row], tokenizer)
    np.testing.assert_array_equal(weights.chosen.starts, own.chosen.starts[:-dropped])
    np.testing.assert_array_equal(weights.chosen.ends, own.chosen.ends[:-dropped])
    for layer in LAYERS:
        kept = own.chosen.weights[layer][:-dropped]
        np.testing.assert_allclose(weights.chosen.weights[layer], kept / kept.mean(), rtol=1e-6)
    assert weights.truncated == (dropped > 3)


def test_answers_that_were_decoded_and_cleaned_up() -> None:
    """The judge saw the text without some spaces; the weights go to the characters that it saw."""
    tokenizer = tiny_tokenizer()
    shown, seen = "Yes , it is 4 . Isn 't it ' so ' ?", "Yes, it is 4. Isn 't it'so '?"
    pair = Pair(prompt=(Message(role="user", content="q"),), chosen=shown, rejected="No.")
    (row,), _ = judged(tokenizer, [Pair(prompt=pair.prompt, chosen=seen, rejected="No.")])
    row |= {name: as_row(pair)[name] for name in ("chosen", "rejected")}
    (weights,) = imported([row], tokenizer)
    assert weights.truncated
    spelled = [shown[a:b] for a, b in zip(weights.chosen.starts, weights.chosen.ends, strict=True)]
    assert spelled[0] == "Y"
    assert "".join(spelled).replace(" ", "") == seen.replace(" ", "")


def test_a_last_token_that_reaches_over_the_end(make_pair: Callable[..., Pair]) -> None:
    """As ".\\n" does, which is one token in some vocabularies; a token of the template alone is none of the answer."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([".\n"])
    (row,), (own,) = judged(tokenizer, [make_pair(chosen="  It is 四. ", rejected="5")])
    assert tokenizer.decode(row["chosen_tokens"]) == "It is 四.\n"
    (weights,) = imported([row], tokenizer)
    assert int(weights.chosen.ends[-1]) == len("  It is 四.")
    assert_same(as_weight_row(weights, own.example_hash), own)
    row["chosen_tokens"].append(tokenizer.convert_tokens_to_ids("Ċ"))
    for layer in LAYERS:
        row[f"chosen_weights_{layer}"].append(0.0)
    with pytest.raises(UnusableWeights, match="go on behind the answer's end"):
        imported([row], tokenizer)


Change = Callable[[Row], object]
BROKEN: dict[str, Change] = {
    "`chosen_tokens` do not fit the chosen answer: the tokens spell another text": lambda row: row[
        "chosen_tokens"
    ].reverse(),
    "(are they of another tokenizer? see --tokenizer)": lambda row: row["rejected_tokens"].reverse(),
    "a token id is not in the tokenizer's vocabulary": lambda row: row["chosen_tokens"].__setitem__(0, 100_000),
    "`rejected_weights_3` has another length than `rejected_tokens`": lambda row: row["rejected_weights_3"].pop(),
    "`chosen_weights_0` has another length than `chosen_tokens`": lambda row: row["chosen_tokens"].pop(),
    "`chosen_weights_3` does not sum to 1": lambda row: row["chosen_weights_3"].__setitem__(
        0, row["chosen_weights_3"][0] + 0.011
    ),
    "`chosen_weights_0` does not sum to 1": lambda row: row.update(chosen_weights_0=[0.0] * len(row["chosen_tokens"])),
    "`rejected_weights_0` holds a negative number": lambda row: row["rejected_weights_0"].__setitem__(0, -0.01),
    "`rejected_weights_0` holds a number that is not finite": lambda row: row["rejected_weights_0"].__setitem__(
        0, float("nan")
    ),
    "`chosen_weights_0` holds something other than numbers": lambda row: row["chosen_weights_0"].__setitem__(0, None),
    "`chosen_weights_3` holds something other than numbers": lambda row: row["chosen_weights_3"].__setitem__(0, "1"),
    "`rejected_weights_3` holds something other than numbers": lambda row: row["rejected_weights_3"].__setitem__(
        0, [1.0]
    ),
    "`chosen_tokens` holds something other than whole numbers": lambda row: row["chosen_tokens"].__setitem__(0, 1.5),
    "`rejected_tokens` is an empty list": lambda row: row.update(rejected_tokens=[]),
    "`rejected_tokens` is missing": lambda row: row.pop("rejected_tokens"),
    "`chosen_weights_0` is missing": lambda row: row.update(chosen_weights_0=None),
    "`chosen_weights_0` is text, not a list of numbers": lambda row: row.update(chosen_weights_0="0.5"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_what_cannot_be_imported(reason: str) -> None:
    tokenizer = tiny_tokenizer()
    rows, _ = judged(tokenizer)
    made, broken = layout(rows, tokenizer), dict(rows[2])
    pair = parse_row(broken, 2)
    BROKEN[reason](broken)
    assert isinstance(pair, Pair)
    with pytest.raises(UnusableWeights) as caught:
        made.weights(broken, pair)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sums_as_far_off_as_bfloat16_puts_them() -> None:
    """The published sums are, each quotient and the divisor being rounded to 8 bits; the mean weight is 1 after all."""
    tokenizer = tiny_tokenizer()
    rows, own = judged(tokenizer)
    for row in rows:
        row["chosen_weights_3"] = [weight * 1.0078 for weight in row["chosen_weights_3"]]
    for weights, expected in zip(imported(rows, tokenizer), own, strict=True):
        assert_same(as_weight_row(weights, expected.example_hash), expected)


def test_layers_and_rollout() -> None:
    tokenizer = tiny_tokenizer()
    rows, own = judged(tokenizer)
    made = layout(rows, tokenizer, "3", "a/judge")
    assert (made.recipe.source, made.recipe.layers, made.recipe.judge_model) == ("import:attentionpo", (3,), "a/judge")
    assert (made.recipe.chat_template_hash, made.recipe.dtype) == (None, "unknown")
    assert made.columns == ("chosen_tokens", "rejected_tokens", "chosen_weights_3", "rejected_weights_3")
    assert layout(rows, tokenizer).recipe.layers == LAYERS
    both = [
        row | {f"{side}_weights_attention_rollout": row[f"{side}_weights_3"] for side in ("chosen", "rejected")}
        for row in rows
    ]
    assert layout(both, tokenizer).recipe.layers == LAYERS
    rollout = layout(both, tokenizer, "attention_rollout")
    assert (rollout.recipe.source, rollout.recipe.layers) == ("import:attentionpo:attention_rollout", (0,))
    alone = [{name: value for name, value in row.items() if not name.endswith(("_0", "_3"))} for row in both]
    assert layout(alone, tokenizer).recipe == rollout.recipe
    for weights, expected in zip(imported(alone, tokenizer), own, strict=True):
        for name in ("chosen", "rejected"):
            side: SideWeights = getattr(weights, name)
            np.testing.assert_allclose(side.weights[0], expected.side(name).weights[3], rtol=1e-6)
    for layers, message in (
        ("7", "--layers 7: the data set has 0, 3, attention_rollout"),
        ("3,x", "--layers 3,x: the data set has"),
        ("0,attention_rollout", "goes into a cache of its own"),
    ):
        with pytest.raises(UsageError, match=message):
            layout(both, tokenizer, layers)


def test_a_column_that_one_side_lacks_is_an_error_unless_it_is_not_asked_for() -> None:
    tokenizer = tiny_tokenizer()
    rows, _ = judged(tokenizer)
    columns = [name for name in rows[0] if name != "rejected_weights_0"]
    assert is_attentionpo(columns)
    with pytest.raises(DataError, match="no column `rejected_weights_0`, which belongs to the others"):
        AttentionPO(columns, tokenizer=tiny_tokenizer, judge_model=None, layers=None)
    assert AttentionPO(columns, tokenizer=tiny_tokenizer, judge_model=None, layers="3").recipe.layers == (3,)
    with pytest.raises(DataError, match="there is no column such as `chosen_weights_31`"):
        AttentionPO(["chosen_tokens"], tokenizer=tiny_tokenizer, judge_model=None, layers=None)


@pytest.mark.model
def test_real_pairs_with_the_published_ids(shared: Path, embedded_model: str) -> None:
    """24 pairs that others judged: every weight, and every offset as this project's own prompts have it."""
    from twdpo.pipeline.models import load_tokenizer

    layers = (5, 11, 17, 23, 29)
    rows = []
    for source in pq.read_table(shared / "parity/published_procedure_24.parquet").to_pylist():
        prompt = (Message(role="user", content=source["prompt"]),)
        row = as_row(Pair(prompt=prompt, chosen=source["chosen"], rejected=source["rejected"]))
        for side in ("chosen", "rejected"):
            row[f"{side}_tokens"] = source[f"{side}_tokens"]
            row |= {f"{side}_weights_{layer}": source[f"{side}_p_{layer}"] for layer in layers}
        rows.append(row)
    tokenizer = load_tokenizer(embedded_model)
    builder = PromptBuilder(tokenizer, template=load_template(None))
    found = imported(rows, tokenizer)
    assert len(found) == 24
    for i, (row, weights) in enumerate(zip(rows, found, strict=True)):
        pair = parse_row(row, i)
        assert isinstance(pair, Pair)
        prompt_ = builder.build(pair, "cr")
        for side, span in ((weights.chosen, prompt_.answer_a), (weights.rejected, prompt_.answer_b)):
            np.testing.assert_array_equal(side.starts, span.starts)
            np.testing.assert_array_equal(side.ends, span.ends)
        for name in ("chosen", "rejected"):
            got: SideWeights = getattr(weights, name)
            for layer in layers:
                expected = np.asarray(row[f"{name}_weights_{layer}"])
                np.testing.assert_allclose(got.weights[layer], expected * len(expected), rtol=1e-6)
        assert weights.truncated == (max(len(row["chosen_tokens"]), len(row["rejected_tokens"])) == 768)
