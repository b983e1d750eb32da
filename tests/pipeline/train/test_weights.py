"""From stored weights to the weight of every completion token."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.train.conftest import stored_weights
from twdpo.pipeline.train.render import RenderedSide, Renderer
from twdpo.pipeline.train.weights import WeightRules, training_weights, uniform_weights
from twdpo.preferences import Message, Pair
from twdpo.weights_cache import SideWeights
from twdpo.weights_cache.transforms import sink_fix

ANSWER = "It is four, of course: two and two make four."
RAW = WeightRules(layers=(1,), sink_fix=False)


def rendered(answer: str = ANSWER, max_length: int = 512) -> RenderedSide:
    """The answer in a ChatML conversation."""
    pair = Pair(prompt=(Message(role="user", content="What is it?"),), chosen=answer, rejected="No.")
    return Renderer(tiny_tokenizer(), max_length=max_length).render(pair).chosen


def test_the_same_tokenizer_passes_weights_through_to_the_bit() -> None:
    stored, side = stored_weights(ANSWER), rendered()
    weights = training_weights(stored, side, RAW)
    n = len(stored)
    assert weights[:n].tobytes() == stored.weights[1].tobytes()
    assert weights[n:].tolist() == [0.0] * (side.completion_length - n)
    assert side.completion_length > n
    ones = training_weights(stored, side, replace(RAW, uncovered="one"))
    assert ones[:n].tobytes() == stored.weights[1].tobytes()
    assert ones[n:].tolist() == [1.0] * (side.completion_length - n)


def test_source_sink_fix_and_mix_come_in_this_order() -> None:
    stored, side = stored_weights(ANSWER), rendered()
    n = len(stored)
    mean = np.stack([stored.weights[0], stored.weights[1]]).astype(np.float64).mean(0).astype(np.float32)
    fixed = sink_fix(mean)
    found = training_weights(stored, side, WeightRules(layers=(0, 1), uniform_mix=0.25))
    np.testing.assert_allclose(found[:n], 0.75 * fixed + 0.25, rtol=1e-6)
    assert found[0] == pytest.approx(1.0)
    assert found[n:].tolist() == [0.0] * (len(found) - n)


@given(st.sampled_from(["zero", "one"]), st.floats(0, 1))
def test_a_uniform_judge_trains_as_no_judge(uncovered: str, mix: float) -> None:
    rules = replace(RAW, uncovered=uncovered, uniform_mix=mix)
    side = rendered()
    stored = stored_weights(ANSWER)
    even = SideWeights(starts=stored.starts, ends=stored.ends, weights={1: np.ones(len(stored), np.float32)})
    np.testing.assert_allclose(training_weights(even, side, rules), uniform_weights(side, rules), rtol=1e-6)


def test_everything_one_is_dpo() -> None:
    weights = uniform_weights(rendered(), replace(RAW, uncovered="one"))
    assert weights.tolist() == [1.0] * rendered().completion_length


@given(st.integers(30, 60))
def test_the_cut_changes_no_weight(max_length: int) -> None:
    whole = training_weights(stored_weights(ANSWER), rendered(), RAW)
    cut = rendered(max_length=max_length)
    weights = training_weights(stored_weights(ANSWER), cut, RAW)
    assert len(weights) == cut.completion_length
    assert weights.tolist() == whole[: len(weights)].tolist()


def test_white_space_that_the_judge_did_not_see_is_uncovered() -> None:
    """The judge read the stripped answer; here the answer keeps its first blank lines."""
    side = rendered("\n\n\n" + ANSWER)
    stored = stored_weights(ANSWER)
    shifted = SideWeights(starts=stored.starts + 3, ends=stored.ends + 3, weights=stored.weights)
    weights = training_weights(shifted, side, replace(RAW, uncovered="one"))
    first = int(np.flatnonzero(side.answer_starts >= 3)[0])
    assert weights[:first].tolist() == [1.0] * first
    np.testing.assert_allclose(weights[first : first + len(stored)], stored.weights[1], rtol=1e-6)


@given(st.integers(0, 100))
def test_another_tokenization_keeps_the_mean(seed: int) -> None:
    """A judge whose tokens are cut elsewhere: the mean over what it saw stays 1."""
    rng = np.random.default_rng(seed)
    cuts = np.unique(np.append(rng.integers(1, len(ANSWER), 8), [0, len(ANSWER)])).astype(np.int32)
    raw = rng.random(len(cuts) - 1) + 0.01
    stored = SideWeights(starts=cuts[:-1], ends=cuts[1:], weights={1: (raw / raw.mean()).astype(np.float32)})
    side = rendered()
    weights = training_weights(stored, side, RAW)
    assert weights[: len(side.answer_starts)].mean() == pytest.approx(1.0, rel=1e-5)
