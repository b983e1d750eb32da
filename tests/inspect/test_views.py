"""What is said about a pair: verdicts, heaviest tokens, effective tokens, at any width, and in both orders."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console, RenderableType

from tests.inspect.samples import make_example, make_pair
from twdpo.errors import UsageError
from twdpo.inspect.examples import Example
from twdpo.inspect.views import example_view, orders_view, side_weights, verdict
from twdpo.weights_cache import SideWeights
from twdpo.weights_cache.transforms import sink_fix


def drawn(view: RenderableType, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(view)
    return out.getvalue()


def side(weights: list[float], other: list[float] | None = None) -> SideWeights:
    """Tokens of two characters each."""
    starts = np.arange(0, 2 * len(weights), 2, dtype=np.int32)
    layers = {3: np.array(weights, np.float32), 29: np.array(other or [1.0] * len(weights), np.float32)}
    return SideWeights(starts=starts, ends=starts + 2, weights=layers)


def example(weights: list[float], other: list[float] | None = None) -> Example:
    text = "".join(f"{chr(97 + i)} " for i in range(len(weights)))
    made = make_example(make_pair(text, text + "!"))
    return replace(made, row=replace(made.row, chosen=side(weights, other), rejected=side(weights, other)))


def test_the_pair_can_be_found_again_and_the_source_is_named() -> None:
    found = example([1.0, 4.0, 0.5, 0.5, 0.0, 0.0])
    shown = drawn(example_view(found, 3, color=False))
    assert shown.startswith(f"pair 4  {found.row.example_hash}\nlayer 3, raw weights; P(chosen) 0.80 when first, 0.30")
    assert "the verdict flips" in " ".join(shown.split())
    assert "mean of layers 3, 29, raw weights" in drawn(example_view(found, (3, 29), color=False))
    assert "layer 3, sink-fixed weights" in drawn(example_view(found, 3, color=False, sink_fixed=True))


def test_the_heaviest_tokens_have_rank_weight_and_number() -> None:
    shown = drawn(example_view(example([1.0, 4.0, 0.5, 0.5, 0.0, 0.0]), 3, color=False))
    lines = [line.split("│")[1].strip() for line in shown.split("\n") if line.count("│") >= 4]
    assert lines[lines.index("1. 4.00 #1 'b '") :][:3] == ["1. 4.00 #1 'b '", "2. 1.00 #0 'a '", "3. 0.50 #2 'c '"]
    assert any(line.startswith("6 tokens, ") for line in lines)
    # Entropy by hand: shares 1/6, 4/6, and two of 1/12.
    p = np.array([1 / 6, 4 / 6, 1 / 12, 1 / 12])
    assert f"6 tokens, {np.exp(-(p * np.log(p)).sum()):.1f} effective" in shown


def test_sink_fixed_weights_are_those_of_training() -> None:
    found = example([3.5, 0.5, 0.5, 0.25, 0.25], [0.5, 2.0, 0.5, 1.0, 1.0])
    weights = found.row.chosen.weights[3]
    assert side_weights(found.row.chosen, (3,)) is weights
    assert np.array_equal(side_weights(found.row.chosen, (3,), sink_fixed=True), sink_fix(weights))
    assert "1. 3.50 #0" in drawn(example_view(found, 3, color=False))
    assert "1. 1.33 #1" in drawn(example_view(found, 3, color=False, sink_fixed=True))
    assert side_weights(found.row.chosen, (3, 29)).tolist() == [2.0, 1.25, 0.5, 0.625, 0.625]
    with pytest.raises(UsageError, match="--layer 7 is not in the cache, which holds 3, 29"):
        example_view(found, 7)


@pytest.mark.parametrize(("width", "beside"), [(40, False), (69, False), (70, True), (120, True)])
def test_answers_stand_beside_each_other_where_there_is_room(width: int, beside: bool) -> None:
    shown = drawn(example_view(example([1.0, 1.0]), 3, color=False), width)
    assert any("chosen" in line and "rejected" in line and "╭" in line for line in shown.split("\n")) == beside


def test_verdicts() -> None:
    row = make_example(make_pair("a", "b")).row
    assert verdict(replace(row, judge_prob_cr=0.9, judge_prob_rc=0.8)).endswith("right in both orders")
    assert verdict(replace(row, judge_prob_cr=0.1, judge_prob_rc=0.5)).endswith("wrong in both orders")
    assert verdict(replace(row, judge_prob_cr=float("nan"))) == "no judge"


def test_both_orders_stand_beside_each_other_with_what_they_share() -> None:
    stored = example([2.0, 1.0, 0.5, 0.5])
    first, second = side([3.0, 1.0, 0.0, 0.0]), side([1.0, 1.0, 1.0, 1.0])
    again = replace(stored.row, chosen=side([2.0, 1.25, 0.5, 0.25]))
    shown = drawn(orders_view(stored, again, ((first, second), (second, second)), (3,), color=False), 120)
    flat = " ".join(shown.split())
    assert "chosen, read first" in flat
    assert flat.index("rejected, read second") < flat.index("rejected, read first")
    # Shares 3/4, 1/4, 0, 0 and four of 1/4 have one half in common.
    assert "the orders share 50.0% of the weight; their mean differs from the cache by at most 0.25 (token #1" in flat
    assert "the orders share 100.0% of the weight; their mean differs from the cache by at most 0 (token #0" in flat
    assert "1. 3.00 #0" in flat
