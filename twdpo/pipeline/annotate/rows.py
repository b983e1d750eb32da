"""Two readings of a pair, one an order, become one row of the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt
from twdpo.pipeline.annotate.weights import combine_orders, distribution, order_agreement, verdict_probability
from twdpo.preferences.pair import Pair
from twdpo.weights_cache import SideWeights, WeightRow
from twdpo.weights_cache.alignment import align_weights

Floats = NDArray[np.float32]
_Spans = dict[str, tuple[AnswerSpan, AnswerSpan]]


def make_row(
    pair: Pair,
    prompts: tuple[JudgePrompt, JudgePrompt],
    readings: tuple[Reading, Reading],
    layers: Sequence[int],
) -> WeightRow:
    """The cache row of one pair from its prompts and readings in the orders "cr" and "rc".

    Shares and agreement are those of the deepest layer.
    """
    cr, rc = readings
    deepest = max(layers)
    spans, both = _by_side(prompts, readings, layers)
    sides = {
        side: SideWeights(
            starts=spans[side][0].starts,
            ends=spans[side][0].ends,
            weights={layer: combine_orders(*both[layer][side]) for layer in layers},
        )
        for side in spans
    }
    raw = {"chosen": (cr.attention[deepest][0], rc.attention[deepest][1])}
    raw["rejected"] = (cr.attention[deepest][1], rc.attention[deepest][0])
    share = {side: float(np.mean([a.sum(dtype=np.float64) for a in raw[side]])) for side in spans}
    return WeightRow(
        example_hash=pair.example_hash,
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        judge_prob_cr=_prefers_a(cr),
        judge_prob_rc=1.0 - _prefers_a(rc),
        attention_share_chosen=share["chosen"],
        attention_share_rejected=share["rejected"],
        order_agreement_chosen=order_agreement(*both[deepest]["chosen"]),
        order_agreement_rejected=order_agreement(*both[deepest]["rejected"]),
        truncated=prompts[0].truncated or prompts[1].truncated,
    )


def order_weights(
    prompts: tuple[JudgePrompt, JudgePrompt], readings: tuple[Reading, Reading], layers: Sequence[int]
) -> dict[str, tuple[SideWeights, SideWeights]]:
    """The weights of each side in the orders "cr" and "rc", on the same tokens; their mean is what `make_row` keeps."""
    spans, both = _by_side(prompts, readings, layers)

    def weights(side: str, order: int) -> SideWeights:
        span = spans[side][0]
        each = {layer: distribution(both[layer][side][order]) * len(span.starts) for layer in layers}
        return SideWeights(
            starts=span.starts, ends=span.ends, weights={layer: w.astype(np.float32) for layer, w in each.items()}
        )

    return {side: (weights(side, 0), weights(side, 1)) for side in spans}


def _prefers_a(reading: Reading) -> float:
    """The probability of verdict A, NaN where the verdict was not asked for."""
    return math.nan if reading.verdict_logits is None else verdict_probability(*reading.verdict_logits)


def _by_side(
    prompts: tuple[JudgePrompt, JudgePrompt], readings: tuple[Reading, Reading], layers: Sequence[int]
) -> tuple[_Spans, dict[int, dict[str, tuple[Floats, Floats]]]]:
    """Where each side stands in both orders, and for each layer its attention in them, on the tokens of the first."""
    cr, rc = readings
    spans = {
        "chosen": (prompts[0].answer_a, prompts[1].answer_b),
        "rejected": (prompts[0].answer_b, prompts[1].answer_a),
    }
    attention = {
        layer: {
            "chosen": (cr.attention[layer][0], rc.attention[layer][1]),
            "rejected": (cr.attention[layer][1], rc.attention[layer][0]),
        }
        for layer in layers
    }
    both = {layer: {side: _in_first_tokens(attention[layer][side], spans[side]) for side in spans} for layer in layers}
    return spans, both


def _in_first_tokens(attention: tuple[Floats, Floats], spans: tuple[AnswerSpan, AnswerSpan]) -> tuple[Floats, Floats]:
    """Both orders' attention over the tokens of the first: a template may make a boundary token differ between them."""
    first, second = spans
    if np.array_equal(first.starts, second.starts) and np.array_equal(first.ends, second.ends):
        return attention
    moved, _ = align_weights(attention[1], second.starts, second.ends, first.starts, first.ends)
    return attention[0], moved
