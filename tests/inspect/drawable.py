"""Figures to draw: as a judge's cache gives them, and the odd ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.weights_cache.samples import LAYERS, make_row, make_side
from twdpo.inspect.examples import Example
from twdpo.inspect.figures import Figures, gather_figures
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights, WeightRow


def make_example(number: int, *, text: bool = True) -> Example:
    """Example `number`, the same whenever it is made, with all that a judge's row has."""
    row = make_row(number, text=True)
    assert row.prompt is not None
    assert row.chosen_text is not None
    assert row.rejected_text is not None
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
    pair = Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text)
    agreement = {"order_agreement_chosen": (number % 201) / 100 - 1, "order_agreement_rejected": 1 - 1 / (1 + number)}
    row = replace(row, prompt=None, chosen_text=None, rejected_text=None, **agreement)
    return Example(row=row, pair=pair if text else None)


def full() -> Figures:
    """Figures with everything in them."""
    return gather_figures(map(make_example, range(40)), LAYERS, LAYERS[-1])


def bare() -> Figures:
    """Figures of a cache without judge and texts: one pair of short answers."""
    rng = np.random.default_rng(3)
    row = WeightRow(example_hash="0" * 32, chosen=make_side(rng, 3), rejected=make_side(rng, 1))
    return gather_figures([Example(row=row, pair=None)], LAYERS, LAYERS[0])


def one_hot() -> Figures:
    """Figures of one pair of the shortest answers: all the weight on one token, and a verdict that is certain."""
    weights = {7: np.array([3000, *[0] * 2999], np.float32)}
    places = np.arange(3000, dtype=np.int32)
    side = SideWeights(starts=places, ends=places + 1, weights=weights)
    row = WeightRow(
        example_hash="f" * 32,
        chosen=side,
        rejected=side,
        judge_prob_cr=1.0,
        judge_prob_rc=1.0,
        order_agreement_chosen=1.0,
    )
    pair = Pair(prompt=(), chosen="\n" * 3000, rejected="\n" * 3000)
    return gather_figures([Example(row=row, pair=pair)], (7,), 7)


def uniform() -> Figures:
    """Figures of even weights in many layers."""
    layers = tuple(range(0, 300, 10))
    places = np.arange(10, dtype=np.int32)
    side = SideWeights(starts=places, ends=places + 1, weights=dict.fromkeys(layers, np.ones(10, np.float32)))
    row = WeightRow(example_hash="a" * 32, chosen=side, rejected=side, judge_prob_cr=0.5, judge_prob_rc=0.5)
    pair = Pair(prompt=(), chosen="Well, well", rejected="12345 6789")
    return gather_figures([Example(row=row, pair=pair)], layers, 20)


ODD = {"bare": bare, "one-hot": one_hot, "uniform": uniform}
