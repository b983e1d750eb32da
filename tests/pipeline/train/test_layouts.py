"""What a batch looks like in each layout: every token where it belongs, whatever the lengths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.train.test_batches import LENGTHS, example
from twdpo.pipeline.train.layouts import Batch, collate, cost

LAYOUTS = ("padded", "packed", "tree")


def sequence(batch: Batch, place: int) -> list[int]:
    """The ids that the token at a place of the flattened batch has before it, itself included; an oracle."""
    length = batch.ids.shape[1]
    if batch.stems is None:
        row, column = divmod(place, length)
        return batch.ids[row, : column + 1].tolist()
    ids, at = batch.ids[0].tolist(), 0
    for stem in batch.stems:
        stem_ids = ids[at : at + stem.length]
        if place < at + stem.length:
            return stem_ids[: place - at + 1]
        at += stem.length
        for branch in stem.branches:
            if place < at + branch:
                return stem_ids + ids[at : place + 1]
            at += branch
    raise AssertionError(place)


@pytest.mark.parametrize("layout", LAYOUTS)
@given(lengths=LENGTHS, prompt=st.integers(1, 5))
def test_every_completion_token_is_predicted_after_what_comes_before_it(
    layout: str, lengths: list[tuple[int, int]], prompt: int
) -> None:
    examples = [example(i, *pair, prompt=prompt) for i, pair in enumerate(lengths)]
    reference = {e.example_hash: (e.chosen.weights * 10, e.rejected.weights * 10) for e in examples}
    batch = collate(examples, reference, layout=layout)
    sides = [e.chosen for e in examples] + [e.rejected for e in examples]
    n = 0
    for row, side in enumerate(sides):
        for token in range(side.prompt_length, len(side.ids)):
            assert sequence(batch, int(batch.places[n])) == side.ids[:token].tolist()
            assert int(batch.targets[n]) == side.ids[token]
            n += 1
        count = len(side.weights)
        assert batch.weights[row, :count].tolist() == side.weights.tolist()
        assert batch.reference[row, :count].tolist() == (side.weights * 10).tolist()
        assert batch.filled[row].sum() == count
        assert not batch.weights[row, count:].any()
        assert not batch.reference[row, count:].any()
    assert n == len(batch.places) == len(batch.targets)
    assert len(batch.weights) == 2 * len(examples)
    logps = torch.cat([batch.weights[row][batch.filled[row]] for row in range(len(sides))])
    torch.testing.assert_close(batch.spread(logps), batch.weights, rtol=0, atol=0)
    assert batch.ids.numel() == cost(examples, layout)
    if batch.stems is not None:
        assert batch.positions is not None
        assert sum(stem.tokens for stem in batch.stems) == batch.ids.shape[1]
        for place in batch.places.tolist():
            assert int(batch.positions[0, place]) == len(sequence(batch, place)) - 1


def test_a_prompt_is_computed_once_in_a_tree() -> None:
    examples = [example(1, 4, 3, prompt=50)]
    assert [cost(examples, layout) for layout in LAYOUTS] == [108, 107, 57]


def test_sides_that_begin_differently_share_nothing() -> None:
    pair = example(1, 4, 3, prompt=6)
    other = replace(pair.rejected, ids=np.concatenate([[399], pair.rejected.ids[1:]]).astype(np.int32))
    batch = collate([replace(pair, rejected=other)], None, layout="tree")
    assert batch.stems is not None
    assert [(stem.length, stem.branches) for stem in batch.stems] == [(0, (10,)), (0, (9,))]
    assert sequence(batch, int(batch.places[4])) == other.ids[:6].tolist()
