"""Figures of a cache against an oracle that goes through the tokens one by one."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from tests.inspect.drawable import make_example
from tests.weights_cache.samples import LAYERS, make_row, make_side
from twdpo.errors import CacheError
from twdpo.inspect import figures as module
from twdpo.inspect.examples import Example
from twdpo.inspect.figures import WEIGHT_EDGES, Figures, gather_figures
from twdpo.inspect.token_classes import CLASSES, classify
from twdpo.weights_cache import SideWeights, WeightRow
from twdpo.weights_cache.statistics import effective_tokens
from twdpo.weights_cache.transforms import sink_fix

DEFAULT = LAYERS[1]


def make_partial(number: int) -> Example:
    """Example `number`: every fourth has no text, every fifth no verdict, every seventh half of the agreement."""
    example = make_example(number, text=number % 4 != 0)
    row = example.row
    if number % 5 == 0:
        row = replace(row, judge_prob_rc=math.nan)
    if number % 7 == 0:
        row = replace(row, order_agreement_rejected=math.nan)
    return replace(example, row=row)


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Pairs of many lengths, some without a text, one of single tokens, one with all its weight on the first token."""
    made = [make_partial(number) for number in range(60)]
    one_hot = {layer: np.array([6, 0, 0, 0, 0, 0], np.float32) for layer in LAYERS}
    side = SideWeights(starts=np.arange(6, dtype=np.int32), ends=np.arange(1, 7, dtype=np.int32), weights=one_hot)
    single = make_side(np.random.default_rng(0), 1)
    return [
        *made,
        Example(row=replace(make_row(70), chosen=side), pair=None),
        Example(row=replace(make_row(71), chosen=single, rejected=single), pair=None),
    ]


@pytest.fixture(scope="module")
def figures(examples: list[Example]) -> Figures:
    """Added seven at a time, so that sums go over several batches, the last of them short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH", 7)
        return gather_figures(iter(examples), LAYERS, DEFAULT)


def answers(examples: list[Example]) -> Iterator[tuple[SideWeights, str | None]]:
    for example in examples:
        yield example.row.chosen, example.pair.chosen if example.pair else None
        yield example.row.rejected, example.pair.rejected if example.pair else None


def tokens(examples: list[Example], layer: int, fixed: bool) -> Iterator[tuple[int, int, float, str | None]]:
    """Number, length of the answer, weight and class of each token."""
    for side, text in answers(examples):
        weights = sink_fix(side.weights[layer]) if fixed else side.weights[layer]
        kinds = [CLASSES[k] for k in classify(text, side.starts, side.ends)] if text is not None else [None] * len(side)
        for number, (weight, kind) in enumerate(zip(weights.tolist(), kinds, strict=True)):
            yield number, len(side), weight, kind


def test_counts(examples: list[Example], figures: Figures) -> None:
    assert figures.pairs == len(examples)
    assert figures.tokens == sum(len(side) for side, _ in answers(examples))
    assert figures.with_text == sum(example.pair is not None for example in examples) == 45
    assert figures.judged == sum(not math.isnan(example.row.judge_prob_rc) for example in examples) == 50
    assert figures.layers == LAYERS
    assert figures.default_layer == DEFAULT


@pytest.mark.parametrize("fixed", [False, True], ids=["as stored", "fixed"])
@pytest.mark.parametrize("place", range(len(LAYERS)))
def test_weight_by_position_and_class(examples: list[Example], figures: Figures, place: int, fixed: bool) -> None:
    groups: dict[Any, list[float]] = {}
    for number, length, weight, kind in tokens(examples, LAYERS[place], fixed):
        groups.setdefault(math.floor(number * 20 / length), []).append(weight)
        if number < 32:
            groups.setdefault(("first", number), []).append(weight)
        groups.setdefault(kind, []).append(weight)
    for part in range(20):
        assert figures.position[int(fixed), place, part] == pytest.approx(fmean(groups[part]), rel=1e-5)
        assert figures.position_tokens[part] == len(groups[part])
    for number in range(32):
        weights = groups[("first", number)]
        assert figures.first_tokens[int(fixed), place, number] == pytest.approx(fmean(weights), rel=1e-5)
        assert figures.first_counts[number] == len(weights)
    mass = sum(sum(groups.get(kind, [])) for kind in CLASSES)
    assert {"content words", "punctuation", "digits", "white space"} <= set(groups)
    for code, kind in enumerate(CLASSES):
        weights = groups.get(kind, [])
        assert figures.class_tokens[code] == len(weights)
        assert figures.class_mass[int(fixed), place, code] == pytest.approx(sum(weights) / mass, rel=1e-5)
        if weights:
            assert figures.class_weights[int(fixed), place, code] == pytest.approx(fmean(weights), rel=1e-5)
        else:
            assert math.isnan(figures.class_weights[int(fixed), place, code])


@pytest.mark.parametrize("place", range(len(LAYERS)))
def test_distribution_and_effective_tokens(examples: list[Example], figures: Figures, place: int) -> None:
    count, mass = [0] * 40, [0.0] * 40
    for _, _, weight, _ in tokens(examples, LAYERS[place], False):
        bin_ = bisect_right(WEIGHT_EDGES.tolist(), weight)
        count[bin_] += 1
        mass[bin_] += weight
    assert figures.weight_tokens[place] == pytest.approx([each / sum(count) for each in count])
    assert figures.weight_mass[place] == pytest.approx([each / sum(mass) for each in mass])
    shares = [effective_tokens(side.weights[LAYERS[place]]) / len(side) for side, _ in answers(examples)]
    assert figures.effective[place] == pytest.approx(fmean(shares))


def test_weights_fall_into_the_bin_whose_border_they_reach() -> None:
    borders = np.array([0.0, 1e-30, 2.0**-10, 0.999, 1.0, 1.42, 2.0, 2.0**9, 1e5], np.float32)
    values = borders.astype(np.float64)
    assert module._weight_bins(values).tolist() == [bisect_right(WEIGHT_EDGES.tolist(), value) for value in values]
    assert module._weight_bins(values).tolist() == [0, 0, 1, 20, 21, 22, 23, 39, 39]


def test_agreement_and_verdicts(examples: list[Example], figures: Figures) -> None:
    for side, name in enumerate(("order_agreement_chosen", "order_agreement_rejected")):
        values = [getattr(example.row, name) for example in examples]
        known = [value for value in values if not math.isnan(value)]
        assert len(known) > 0
        expected = np.histogram(known, bins=80, range=(-1, 1))[0]
        assert figures.agreement[side].tolist() == expected.tolist()
        assert figures.agreement_means[side] == pytest.approx(fmean(known))
    both = [(row.judge_prob_cr, row.judge_prob_rc) for row in (example.row for example in examples)]
    verdicts = [[0] * 20 for _ in range(20)]
    for first, second in both:
        if not math.isnan(second):
            verdicts[int(first * 20)][int(second * 20)] += 1
    assert figures.verdicts.tolist() == verdicts


def test_margin_against_effective_tokens(examples: list[Example], figures: Figures) -> None:
    points = judged_points(examples)
    order = sorted(points)
    assert figures.margins == pytest.approx([points[key][0] for key in order])
    assert figures.margin_effective == pytest.approx([points[key][1] for key in order])
    edges = figures.margin_edges
    assert len(figures.margin_counts) == len(edges) - 1 <= 10
    assert figures.margin_counts.sum() == len(points)
    # Fifty pairs in ten groups, cut between pairs that differ by 0.002 or more.
    assert figures.margin_counts.min() >= 3
    assert figures.margin_counts.max() <= 7
    for group, (low, high) in enumerate(pairwise(edges)):
        inside = [point for point in points.values() if low <= point[0] < high]
        assert figures.margin_counts[group] == len(inside)
        assert figures.margin_means[group] == pytest.approx(fmean(point[0] for point in inside))
        effective = sorted(point[1] for point in inside)
        assert figures.margin_effects[group, 0] == pytest.approx(fmean(effective))
        for quartile, value in zip((0.25, 0.5, 0.75), figures.margin_effects[group, 1:], strict=True):
            below, above = (
                np.quantile(effective, quartile, method="lower"),
                np.quantile(effective, quartile, method="higher"),
            )
            # Where it is reached: a value of so many from below, to within a bin of 0.002.
            reached = effective[max(0, math.ceil(quartile * len(effective)) - 1)]
            assert min(below, reached) - 0.0021 <= value <= max(above, reached) + 0.0021


def judged_points(examples: list[Example]) -> dict[str, tuple[float, float]]:
    """Hash → margin and effective share of the judged pairs."""
    points = {}
    for row in (example.row for example in examples):
        if not math.isnan(row.judge_prob_rc):
            shares = [effective_tokens(side.weights[DEFAULT]) / len(side) for side in (row.chosen, row.rejected)]
            points[row.example_hash] = ((row.judge_prob_cr + row.judge_prob_rc) / 2 - 0.5, fmean(shares))
    return points


def test_quartiles_are_read_off_the_bins() -> None:
    counts = np.zeros(500, np.int64)
    counts[[100, 200, 300, 400]] = 25
    assert module._quartiles(counts) == pytest.approx([0.202, 0.402, 0.602])
    assert module._quartiles(np.ones(500, np.int64)) == pytest.approx([0.25, 0.5, 0.75])


@pytest.mark.parametrize("counts", [[5], [0, 5, 0], [1] * 40, [100, 1, 1, 1], [1, 1, 1, 100], [3, 0, 0, 0, 3], [0, 0]])
def test_groups_take_in_every_pair_and_none_is_empty(counts: list[int]) -> None:
    cuts = module._equal_groups(np.array(counts), 10)
    sizes = [sum(counts[a:b]) for a, b in pairwise(cuts)]
    assert sum(sizes) == sum(counts)
    assert all(sizes)
    assert len(sizes) <= 10


def test_the_sample_is_bounded_and_does_not_depend_on_the_order(
    examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BATCH", 5)
    monkeypatch.setattr(module, "SAMPLE", 12)
    forward = gather_figures(examples, LAYERS, DEFAULT)
    backward = gather_figures(reversed(examples), LAYERS, DEFAULT)
    points = judged_points(examples)
    assert forward.margins == pytest.approx([points[key][0] for key in sorted(points)[:12]])
    assert forward.margins.tolist() == backward.margins.tolist()
    assert forward.margin_effective.tolist() == backward.margin_effective.tolist()
    assert forward.verdicts.tolist() == backward.verdicts.tolist()


def test_memory_does_not_grow_with_the_pairs(examples: list[Example], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 12)
    few, many = (gather_figures(examples * times, LAYERS, DEFAULT) for times in (1, 3))
    for name in Figures.__slots__:
        if isinstance(getattr(few, name), np.ndarray) and not name.startswith("margin_"):
            assert getattr(few, name).shape == getattr(many, name).shape
    alive: list[int] = []

    class Counted(list[Example]):
        """Examples that are made when they are asked for."""

        def __iter__(self) -> Iterator[Example]:
            for number in range(40):
                alive.append(number)
                yield examples[number % len(examples)]

    monkeypatch.setattr(module, "_BATCH", 8)
    seen: list[int] = []
    add = module._Sums.add
    monkeypatch.setattr(module._Sums, "add", lambda self, batch: (seen.append(len(alive)), add(self, batch)))
    gather_figures(Counted(), LAYERS, DEFAULT)
    assert seen == [8, 16, 24, 32, 40]


def test_a_cache_of_another_weight_source_has_neither_verdicts_nor_agreement() -> None:
    rng = np.random.default_rng(3)
    row = WeightRow(example_hash="0" * 32, chosen=make_side(rng, 9), rejected=make_side(rng, 4))
    figures = gather_figures([Example(row=row, pair=None)], LAYERS, LAYERS[0])
    assert (figures.judged, figures.with_text) == (0, 0)
    assert not figures.agreement.any()
    assert np.isnan(figures.agreement_means).all()
    assert np.isnan(figures.class_weights).all()
    assert len(figures.margin_counts) == len(figures.margins) == 0
    assert figures.margin_effects.shape == (0, 4)
    assert np.isnan(figures.first_tokens[..., 9:]).all()


def test_no_pairs_is_an_error() -> None:
    with pytest.raises(CacheError, match="holds no pairs"):
        gather_figures([], LAYERS, DEFAULT)
