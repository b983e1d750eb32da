"""Prompts laid in a row are all still there, and what they share is there once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twdpo.pipeline.annotate.engines.tree import Ids, Tree, divide, grow, halves, lay, shared_head

#: Few different tokens, so that prompts begin alike by chance too.
IDS = st.lists(st.integers(0, 2), min_size=2, max_size=12).map(lambda ids: np.array(ids, np.int32))
PROMPTS = st.lists(IDS, min_size=1, max_size=9)


def naive_common(prompts: list[Ids]) -> int:
    n = 0
    while all(len(ids) > n + 1 and ids[n] == prompts[0][n] for ids in prompts):
        n += 1
    return n


@given(PROMPTS)
def test_the_head_is_what_all_begin_with_and_leaves_each_its_last_token(prompts: list[Ids]) -> None:
    head = shared_head(prompts)
    assert len(head) == (naive_common(prompts) if len(prompts) > 2 else 0)


@given(PROMPTS, IDS)
def test_every_prompt_can_be_read_back_from_head_and_row(prompts: list[Ids], head: Ids) -> None:
    trees = grow(prompts, head)
    row = lay(trees, prompts, len(head))
    everything = np.concatenate([head, row.ids])
    assert row.prompts == tuple(range(len(prompts)))
    for r, prompt in enumerate(prompts):
        keys = row.keys[r, : row.lengths[r]]
        np.testing.assert_array_equal(everything[keys], prompt)
        assert keys[-1] == len(head) + row.places[r]  # the reading position is the prompt's own last token
        in_row = keys[keys >= len(head)] - len(head)
        np.testing.assert_array_equal(row.positions[in_row], np.flatnonzero(keys >= len(head)))


@given(PROMPTS, IDS)
def test_segments_cover_the_row_and_know_what_comes_before_them(prompts: list[Ids], head: Ids) -> None:
    trees = grow(prompts, head)
    row = lay(trees, prompts, len(head))
    assert [segment.at for segment in row.segments] == list(np.cumsum([0, *(s.length for s in row.segments)])[:-1])
    assert sum(segment.length for segment in row.segments) == len(row.ids) == sum(tree.tokens for tree in trees)
    for segment in row.segments:
        assert segment.length > 0
        assert row.positions[segment.at] == segment.before == segment.head + segment.stem_length


@given(PROMPTS, IDS)
def test_a_pairs_orders_share_all_that_they_begin_with(prompts: list[Ids], head: Ids) -> None:
    for tree in grow(prompts, head):
        shared = tree.head + tree.stem
        if len(tree.prompts) == 2:
            first, second = (prompts[i] for i in tree.prompts)
            # All of it, but for a last token, which has to be read.
            assert shared == min(naive_common([first, second]), len(first) - 1, len(second) - 1)
        assert tree.tokens == tree.head + tree.stem + sum(len(prompts[i]) - shared for i in tree.prompts) - tree.head


@given(PROMPTS, st.integers(1, 40), st.one_of(st.none(), st.integers(1, 5)))
def test_parts_hold_everything_in_order_within_the_budget(prompts: list[Ids], budget: int, most: int | None) -> None:
    trees = grow(prompts, prompts[0][:0])
    parts = list(divide(trees, budget, most))
    assert [tree for part in parts for tree in part] == trees
    for part in parts:
        assert part
        if len(part) > 1:
            assert sum(tree.tokens for tree in part) <= budget
            assert most is None or sum(len(tree.prompts) for tree in part) <= most


def test_parts_are_about_equal() -> None:
    trees = [Tree(prompts=(i,), head=0, stem=0, tokens=10) for i in range(12)]
    assert [len(part) for part in divide(trees, 110, None)] == [6, 6]


def test_halves_end_at_single_prompts() -> None:
    prompts = [np.array(ids, np.int32) for ids in ([1, 2, 3, 4], [1, 2, 5], [7, 8])]
    trees = grow(prompts, prompts[0][:1])
    first, second = halves(trees) or ([], [])
    assert [tree.prompts for tree in (*first, *second)] == [(0, 1), (2,)]
    one, other = halves(first) or ([], [])
    assert [tree.prompts for tree in (*one, *other)] == [(0,), (1,)]
    row = lay([*one, *other], prompts, 1)
    assert row.ids.tolist() == [2, 3, 4, 2, 5]
    assert halves(one) is None
