"""Rows out of paged steps: whatever the schedule, the chunks, the cached prefixes and the blocks, the dense numbers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from twdpo.pipeline.annotate.engines.kernels import Scores
from twdpo.pipeline.annotate.engines.paged import KeyStore, Step, attention_row, mean_over_ranks, step_rows

Array = NDArray[np.float64]


def dense(query: Array, keys: Array, scoring: Scores) -> Array:
    """The definition, head by head and key by key, in float64; query [H, D], keys [L, G, D]."""
    heads, length = len(query), len(keys)
    total = np.zeros(length)
    for head in range(heads):
        key_head = head // (heads // keys.shape[1])
        scores = []
        for place in range(length):
            score = float(query[head] @ keys[place, key_head]) * scoring.scale
            if scoring.softcap is not None:
                score = scoring.softcap * np.tanh(score / scoring.softcap)
            hidden = scoring.window is not None and length - 1 - place >= scoring.window
            scores.append(-np.inf if hidden else score)
        exponents = np.exp(np.array(scores) - max(scores))
        total += exponents / exponents.sum()
    return total / heads


scorings = st.builds(
    Scores,
    scale=st.floats(0.05, 2.0),
    softcap=st.none() | st.floats(0.5, 20.0),
    window=st.none() | st.integers(1, 12),
)


@given(
    scoring=scorings,
    key_heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    length=st.integers(1, 20),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=80)
def test_a_row_is_the_dense_row(scoring: Scores, key_heads: int, groups: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, keys = rng.normal(size=(key_heads * groups, 4)), rng.normal(size=(length, key_heads, 4))
    row = attention_row(torch.tensor(query, dtype=torch.float32), torch.tensor(keys, dtype=torch.float32), scoring)
    assert row.dtype == torch.float32
    np.testing.assert_allclose(row.numpy(), dense(query, keys, scoring), atol=2e-6)


@dataclass
class Server:
    """A serving engine's scheduler in miniature: blocks from a shuffled pool, full blocks of equal text shared."""

    block_size: int
    pool: list[int]
    cached: dict[tuple[int, ...], int]

    def admit(self, text: tuple[int, ...]) -> tuple[list[int], int]:
        """The blocks of a text, and how many of its tokens are there already; the last is always computed anew."""
        blocks, found = [], 0
        for start in range(0, len(text), self.block_size):
            upto = text[: start + self.block_size]
            if found == start and start + self.block_size < len(text) and upto in self.cached:
                blocks.append(self.cached[upto])
                found = start + self.block_size
            else:
                blocks.append(self.pool.pop())
        return blocks, found

    def finish(self, text: tuple[int, ...], blocks: list[int]) -> None:
        for number, block in enumerate(blocks):
            upto = text[: (number + 1) * self.block_size]
            if len(upto) == (number + 1) * self.block_size:
                self.cached.setdefault(upto, block)


def serve(
    texts: list[tuple[int, ...]],
    server: Server,
    draw: Callable[[int, int], int],
    query_of: Callable[[tuple[int, ...]], Array],
    key_of: Callable[[tuple[int, ...]], Array],
    scoring: Scores,
) -> dict[str, Array]:
    """Run texts in steps of what `draw` says; what each token's query and key are depends on all text up to it."""
    example = torch.tensor(key_of(texts[0][:1])[None], dtype=torch.float32)
    store = KeyStore((max(server.pool) + 1) * server.block_size, example)
    waiting, running, rows = list(enumerate(texts)), dict[int, tuple[list[int], int]](), dict[str, Array]()
    while waiting or running:
        for _ in range(draw(0 if running else 1, 2)):
            if waiting:
                number, text = waiting.pop(0)
                running[number] = server.admit(text)
        names, starts, lengths, tables, queries, keys, slots = [], [0], [], [], [], [], []
        for number, (blocks, done) in running.items():
            text = texts[number]
            now = draw(1, len(text) - done)
            for place in range(done, done + now):
                queries.append(query_of(text[: place + 1]))
                keys.append(key_of(text[: place + 1]))
                slots.append(blocks[place // server.block_size] * server.block_size + place % server.block_size)
            names.append(str(number))
            starts.append(starts[-1] + now)
            lengths.append(done + now)
            tables.append(blocks)
            running[number] = blocks, done + now
        widest = max(map(len, tables))
        step = Step(
            names=tuple(names),
            starts=tuple(starts),
            lengths=tuple(lengths),
            block_table=torch.tensor([[*row, *[0] * (widest - len(row))] for row in tables], dtype=torch.int32),
            block_size=server.block_size,
        )
        mapping = torch.tensor(slots)
        assert step.agrees(mapping)
        query, key = (torch.tensor(np.array(part), dtype=torch.float32) for part in (queries, keys))
        store.write(mapping, key)
        got = step_rows(step, query, key, store, scoring)
        for number in [n for n, (_, done) in running.items() if done == len(texts[n])]:
            rows[str(number)] = got[str(number)].double().numpy()
            server.finish(texts[number], running.pop(number)[0])
    return rows


@given(data=st.data(), scoring=scorings, block_size=st.sampled_from([1, 2, 4]), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_any_schedule_gives_the_dense_rows(data: st.DataObject, scoring: Scores, block_size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    head = tuple(rng.integers(0, 3, size=data.draw(st.integers(0, 9))))
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    texts = [head + tuple(rng.integers(0, 3, size=length)) for length in lengths]
    drawn: dict[tuple[int, ...], tuple[Array, Array]] = {}

    def of(text: tuple[int, ...]) -> tuple[Array, Array]:
        return drawn.setdefault(text, (rng.normal(size=(4, 4)), rng.normal(size=(2, 4))))

    pool = list(range(sum(len(text) // block_size + 1 for text in texts)))
    rng.shuffle(pool)
    server = Server(block_size, pool, {})
    rows = serve(
        texts,
        server,
        lambda least, most: data.draw(st.integers(least, most)),
        lambda text: of(text)[0],
        lambda text: of(text)[1],
        scoring,
    )
    assert len(rows) == len(texts)
    for number, text in enumerate(texts):
        keys = np.stack([of(text[: place + 1])[1] for place in range(len(text))])
        np.testing.assert_allclose(rows[str(number)], dense(of(text)[0], keys, scoring), atol=3e-6)


def step(*, block_size: int = 2) -> Step:
    return Step(
        names=("a", "b"),
        starts=(0, 3, 4),
        lengths=(3, 5),
        block_table=torch.tensor([[4, 1, 0], [2, 5, 3]], dtype=torch.int32),
        block_size=block_size,
    )


def test_slots_follow_the_block_table() -> None:
    assert step().slots(0).tolist() == [8, 9, 2]
    assert step().slots(1).tolist() == [4, 5, 10, 11, 6]


def test_a_layout_that_is_another_is_noticed() -> None:
    mapping = torch.tensor([8, 9, 2, 6])
    assert step().agrees(mapping)
    assert not step(block_size=1).agrees(mapping)
    assert not step().agrees(torch.tensor([8, 9, 3, 6]))


def test_padding_is_not_kept() -> None:
    store = KeyStore(4, torch.zeros(1, 1, 2))
    store.write(torch.tensor([0, 1, 2, 3]), torch.full((4, 1, 2), 7.0))
    store.write(torch.tensor([2, -1]), torch.tensor([[[1.0, 1.0]], [[9.0, 9.0]]]))
    assert store.read(torch.tensor([2, 3]))[:, 0].tolist() == [[1.0, 1.0], [7.0, 7.0]]


@pytest.mark.parametrize("split", [(4, 4), (2, 6), (8,)])
def test_ranks_together_are_the_mean_over_all_heads(split: tuple[int, ...]) -> None:
    """Heads sharded over ranks, with the key heads that they read: the mean is that of one device."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(8, 4, generator=generator)
    keys = torch.randn(11, 8, 4, generator=generator)
    scoring = Scores(scale=0.5)
    whole = attention_row(query, keys, scoring)
    edges = [sum(split[:i]) for i in range(len(split) + 1)]
    parts = [attention_row(query[a:b], keys[:, a:b], scoring) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(mean_over_ranks(parts, split), whole, atol=1e-7, rtol=0)


def test_key_heads_that_ranks_have_in_common() -> None:
    """Fewer key heads than ranks: each rank has a copy of the one that its query heads read."""
    generator = torch.Generator().manual_seed(1)
    query, keys = torch.randn(8, 4, generator=generator), torch.randn(9, 2, 4, generator=generator)
    scoring = Scores(scale=0.5)
    parts = [attention_row(query[2 * r : 2 * r + 2], keys[:, r // 2 : r // 2 + 1], scoring) for r in range(4)]
    whole = attention_row(query, keys, scoring)
    torch.testing.assert_close(mean_over_ranks(parts, [2] * 4), whole, atol=1e-7, rtol=0)
