"""How judge prompts that begin alike are laid in a row, so that what they share is computed once.

    head     what all prompts of a run begin with: the judge template before the question. Its keys and values are kept.
    stem     what both orders of a pair begin with after the head: the question
    tails    the rest of each prompt, one after the other, each ending in its reading position

What is shared is found by comparing token ids, so it is the same text under the same attention whatever the template
looks like. Nothing is padding. Not for: computing attention over such a row (`packed.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.tokens import common_beginning

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Tokens [at, at + length) of a row. Before them in their prompt stand `head` tokens of the head, then a stem.

    stem_at, stem_length: the stem's place in the row; a stem itself, and a prompt without one, has length 0 there.
    """

    at: int
    length: int
    head: int
    stem_at: int = 0
    stem_length: int = 0

    @property
    def before(self) -> int:
        """How many tokens of the prompt precede the segment: the position of its first token."""
        return self.head + self.stem_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One prompt or two neighbouring ones, given by their indices: `head` and then `stem` tokens are shared.

    tokens: that a pass computes for it.
    """

    prompts: tuple[int, ...]
    head: int
    stem: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Trees laid end to end: T tokens, R prompts.

    ids, positions: int64[T]. segments: in the row's order. prompts: the R prompts' indices. places: int64[R], each
    prompt's reading position in the row. keys: int64[R, longest prompt], where each token of a prompt stands, counted
    over the head and then the row; filled with zeros. lengths: int64[R].
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    segments: tuple[Segment, ...]
    prompts: tuple[int, ...]
    places: NDArray[np.int64]
    keys: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """A row's segments as sequences of variable length, for kernels that take all of them at once.

    keys: int64[sum of their keys], where each segment's keys stand, counted over the head and then the row.
    query_ends, key_ends: int32[segments + 1], from 0. longest_query, longest_key: of a segment.
    """

    keys: NDArray[np.int64]
    query_ends: NDArray[np.int32]
    key_ends: NDArray[np.int32]
    longest_query: int
    longest_key: int


def sequences(row: Row, head_length: int) -> Sequences:
    """The segments of a row; head_length as for `lay`."""
    keys = [
        np.concatenate(
            [
                np.arange(segment.head),
                head_length + np.arange(segment.stem_at, segment.stem_at + segment.stem_length),
                head_length + np.arange(segment.at, segment.at + segment.length),
            ]
        )
        for segment in row.segments
    ]
    queries = [segment.length for segment in row.segments]
    return Sequences(
        keys=np.concatenate(keys),
        query_ends=np.cumsum([0, *queries]).astype(np.int32),
        key_ends=np.cumsum([0, *map(len, keys)]).astype(np.int32),
        longest_query=max(queries),
        longest_key=max(map(len, keys)),
    )


def shared_head(prompts: Sequence[Ids]) -> Ids:
    """What all prompts begin with, short of the last token of the shortest; nothing where fewer than three are there.

    Two prompts may be one pair, whose question would be taken for a part of the template.
    """
    if len(prompts) < 3:
        return prompts[0][:0] if prompts else np.zeros(0, np.int32)
    head = prompts[0]
    for ids in prompts:
        head = head[: min(common_beginning(head, ids), len(ids) - 1)]
    return head


def grow(prompts: Sequence[Ids], head: Ids) -> list[Tree]:
    """The prompts as trees, in order. Neighbours grow from one stem where they share more than the head."""
    trees: list[Tree] = []
    i = 0
    while i < len(prompts):
        ids = prompts[i]
        # The reading position stays in the tail.
        from_head = min(common_beginning(head, ids), len(ids) - 1)
        if i + 1 < len(prompts):
            other = prompts[i + 1]
            shared = min(common_beginning(ids, other), len(ids) - 1, len(other) - 1)
            if shared >= from_head and shared > 0:
                tokens = len(ids) + len(other) - from_head - shared
                trees.append(Tree(prompts=(i, i + 1), head=from_head, stem=shared - from_head, tokens=tokens))
                i += 2
                continue
        trees.append(Tree(prompts=(i,), head=from_head, stem=0, tokens=len(ids) - from_head))
        i += 1
    return trees


def divide(trees: Sequence[Tree], budget: int, most: int | None) -> Iterator[list[Tree]]:
    """Consecutive trees in parts of about equal size, none over `budget` tokens or `most` prompts but single trees."""
    total = sum(tree.tokens for tree in trees)
    share = -(-total // max(-(-total // budget), 1)) if trees else budget
    part: list[Tree] = []
    tokens = prompts = 0
    for tree in trees:
        fits = tokens + tree.tokens <= budget and (most is None or prompts + len(tree.prompts) <= most)
        if part and (not fits or tokens >= share):
            yield part
            part, tokens, prompts = [], 0, 0
        part.append(tree)
        tokens += tree.tokens
        prompts += len(tree.prompts)
    if part:
        yield part


def halves(trees: Sequence[Tree]) -> tuple[list[Tree], list[Tree]] | None:
    """Two parts that take about half the memory each; None where nothing is left to divide."""
    if len(trees) > 1:
        middle = len(trees) // 2
        return list(trees[:middle]), list(trees[middle:])
    tree = trees[0]
    if len(tree.prompts) == 1:
        return None
    # Each prompt by itself; what they share is computed twice. Their own lengths are not known here.
    alone = [Tree(prompts=(i,), head=tree.head, stem=0, tokens=tree.tokens) for i in tree.prompts]
    return [alone[0]], [alone[1]]


def lay(trees: Sequence[Tree], prompts: Sequence[Ids], head_length: int) -> Row:
    """Trees in a row. head_length: of the whole head whose keys and values are kept, 0 where there is none."""
    ids: list[Ids] = []
    positions: list[NDArray[np.int64]] = []
    segments: list[Segment] = []
    places: list[int] = []
    keys: list[NDArray[np.int64]] = []
    at = 0

    def add(segment: Segment, tokens: Ids) -> None:
        nonlocal at
        segments.append(segment)
        ids.append(tokens)
        positions.append(np.arange(segment.before, segment.before + segment.length))
        at += segment.length

    for tree in trees:
        stem_at, shared = at, tree.head + tree.stem
        if tree.stem:
            stem = prompts[tree.prompts[0]][tree.head : shared]
            add(Segment(at=at, length=tree.stem, head=tree.head), stem)
        for index in tree.prompts:
            tail = prompts[index][shared:]
            tail_at = at
            add(Segment(at=at, length=len(tail), head=tree.head, stem_at=stem_at, stem_length=tree.stem), tail)
            places.append(at - 1)
            row = (np.arange(stem_at, stem_at + tree.stem), np.arange(tail_at, at))
            keys.append(np.concatenate([np.arange(tree.head), *(head_length + part for part in row)]))
    longest = max(map(len, keys))
    return Row(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions),
        segments=tuple(segments),
        prompts=tuple(index for tree in trees for index in tree.prompts),
        places=np.array(places, np.int64),
        keys=np.stack([np.pad(row, (0, longest - len(row))) for row in keys]),
        lengths=np.array([len(row) for row in keys], np.int64),
    )
