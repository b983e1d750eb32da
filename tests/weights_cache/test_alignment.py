"""Weights moved between tokenizations, against a per-character oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.weights_cache.alignment import Ints, align_weights


def ints(*values: int) -> Ints:
    return np.asarray(values, np.int32)


@st.composite
def segmentation(draw: st.DrawFn, length: int) -> tuple[Ints, Ints]:
    cuts = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=length))})
    return ints(*cuts[:-1]), ints(*cuts[1:])


@st.composite
def two_segmentations(draw: st.DrawFn) -> tuple[tuple[Ints, Ints], tuple[Ints, Ints], list[float]]:
    length = draw(st.integers(1, 30))
    first, second = draw(segmentation(length)), draw(segmentation(length))
    n = len(first[0])
    return first, second, draw(st.lists(st.floats(0, 50, width=32), min_size=n, max_size=n))


def oracle(weights: list[float], source: tuple[Ints, Ints], target: tuple[Ints, Ints]) -> list[float]:
    characters: dict[int, float] = {}
    for weight, start, end in zip(weights, *source, strict=True):
        for i in range(start, end):
            characters[i] = characters.get(i, 0.0) + weight / (end - start)
    collected = [sum(characters.get(i, 0.0) for i in range(s, e)) for s, e in zip(*target, strict=True)]
    mean = sum(weights) / len(weights)
    return [c * mean * len(collected) / sum(collected) if sum(collected) else 0.0 for c in collected]


@given(two_segmentations())
def test_equals_the_oracle(case: tuple[tuple[Ints, Ints], tuple[Ints, Ints], list[float]]) -> None:
    source, target, weights = case
    aligned, covered = align_weights(np.asarray(weights, np.float32), *source, *target)
    assert covered.all()
    np.testing.assert_allclose(aligned, oracle(weights, source, target), rtol=1e-4, atol=1e-5)


@given(two_segmentations())
def test_mean_is_kept_and_nothing_is_negative(case: tuple[tuple[Ints, Ints], tuple[Ints, Ints], list[float]]) -> None:
    source, target, weights = case
    aligned, _ = align_weights(np.asarray(weights, np.float32), *source, *target)
    assert (aligned >= 0).all()
    if sum(weights) > 1e-3:
        assert aligned.mean(dtype=np.float64) == pytest.approx(np.mean(weights), rel=1e-4)


@given(two_segmentations())
def test_same_tokens_pass_through_to_the_bit(case: tuple[tuple[Ints, Ints], tuple[Ints, Ints], list[float]]) -> None:
    source, _, weights = case
    given_weights = np.asarray(weights, np.float32)
    aligned, covered = align_weights(given_weights, *source, *source)
    assert np.array_equal(aligned, given_weights)
    assert covered.all()


def test_tokens_that_share_a_character_pass_through() -> None:
    starts, ends = ints(0, 1, 1, 1, 2), ints(1, 2, 2, 2, 5)
    weights = np.array([0.1, 2.0, 0.3, 1.7, 0.9], np.float32)
    assert np.array_equal(align_weights(weights, starts, ends, starts, ends)[0], weights)


def test_several_tokens_on_one_character_share_its_mass() -> None:
    aligned, _ = align_weights(np.array([1.0, 1.0], np.float32), ints(0, 1), ints(1, 2), ints(0, 1, 1), ints(1, 2, 2))
    np.testing.assert_allclose(aligned, [1.5, 0.75, 0.75])


def test_tail_beyond_the_judged_text_is_uncovered() -> None:
    judged = np.array([0.5, 1.5], np.float32)
    aligned, covered = align_weights(judged, ints(0, 2), ints(2, 4), ints(0, 2, 4, 6), ints(2, 4, 6, 9))
    assert aligned.tolist() == [0.5, 1.5, 0.0, 0.0]
    assert covered.tolist() == [True, True, False, False]
    aligned, covered = align_weights(judged, ints(0, 2), ints(2, 4), ints(0, 1, 4, 6), ints(1, 4, 6, 9))
    assert covered.tolist() == [True, True, False, False]
    np.testing.assert_allclose(aligned, [0.25, 1.75, 0.0, 0.0])
    assert aligned[:2].mean() == pytest.approx(1.0)


def test_stripped_margins_are_uncovered() -> None:
    """The judge saw "ab" of "  ab ": a training token of the margin alone gets nothing."""
    aligned, covered = align_weights(np.array([1.0], np.float32), ints(2), ints(4), ints(0, 2, 4), ints(2, 4, 5))
    assert aligned.tolist() == [0.0, 1.0, 0.0]
    assert covered.tolist() == [False, True, False]
