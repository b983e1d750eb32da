"""Order, shares, micro-batches: nothing is lost, nothing is seen twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.pipeline.train.batches import Plan, micro_batches, share, step_indices
from twdpo.pipeline.train.data import Example, Side
from twdpo.pipeline.train.layouts import cost


def example(number: int, chosen: int = 3, rejected: int = 2, prompt: int = 2) -> Example:
    """An example of so many tokens, whose ids and weights tell it apart."""

    def side(length: int, sign: int) -> Side:
        ids = np.arange(prompt + length, dtype=np.int32) + 100 * number
        weights = (sign * (number + np.arange(1, length + 1) / 8)).astype(np.float32)
        return Side(ids=ids, prompt_length=prompt, weights=weights)

    return Example(example_hash=f"{number:032x}", row=number, chosen=side(chosen, 1), rejected=side(rejected, -1))


LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=30)


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 1000))
def test_every_epoch_sees_every_pair_once_in_its_own_order(pairs: int, batch_size: int, seed: int) -> None:
    plan = Plan.of(pairs, batch_size, 2.0, None)
    assert plan.steps == 2 * plan.steps_per_epoch
    steps = [step_indices(plan, seed, step).tolist() for step in range(plan.steps)]
    first, second = steps[: plan.steps_per_epoch], steps[plan.steps_per_epoch :]
    for epoch in (first, second):
        assert sorted(index for step in epoch for index in step) == list(range(pairs))
        assert all(len(step) == batch_size for step in epoch[:-1])
    assert plan.epoch_after(plan.steps_per_epoch) == 1.0
    assert pairs < 12 or first != second


def test_plan() -> None:
    assert Plan.of(100, 32, 0.5, None).steps == 2
    assert Plan.of(100, 32, 1.0, 7).steps == 7
    assert Plan.of(10, 32, 0.01, None).steps == 1
    assert Plan.of(100, 32, 1.0, None).epoch_after(3) == pytest.approx(0.96)


@given(LENGTHS, st.integers(1, 5))
def test_shares_are_a_partition(lengths: list[tuple[int, int]], ranks: int) -> None:
    examples = [example(i, *pair) for i, pair in enumerate(lengths)]
    shares = [share(examples, rank, ranks) for rank in range(ranks)]
    assert sorted(e.row for part in shares for e in part) == list(range(len(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(
    LENGTHS, st.one_of(st.none(), st.integers(1, 4)), st.integers(1, 400), st.sampled_from(["padded", "packed", "tree"])
)
def test_micro_batches_are_a_partition_within_bounds(
    lengths: list[tuple[int, int]], pairs: int | None, tokens: int, layout: str
) -> None:
    examples = [example(i, *pair) for i, pair in enumerate(lengths)]
    groups = list(micro_batches(examples, pairs, tokens, layout))
    assert sorted(e.row for group in groups for e in group) == list(range(len(lengths)))
    for group in groups:
        if pairs is None:
            assert len(group) == 1 or cost(group, layout) <= tokens
        else:
            assert len(group) == pairs or group is groups[-1]
