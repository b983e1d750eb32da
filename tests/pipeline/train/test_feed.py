"""Both feeds: every pair once an epoch, the same on any number of processes, and exactly the same after a resume."""

from __future__ import annotations

import json
import shutil
import threading
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.train.conftest import World, in_ranks
from twdpo.errors import DataError, MissingRows, UsageError
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.feed import Feed, Portion, open_feed
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.sorting import Sorter
from twdpo.pipeline.train.streamed import StreamedFeed
from twdpo.preferences import PairStream, draw_rows, load, resolve
from twdpo.weights_cache import ReferenceStore, WeightsCache

BOTH = pytest.mark.parametrize("streaming", [False, True], ids=["resident", "streamed"])


def prepare(
    feed: Feed, folder: Path, step: int = 0, state: dict[str, Any] | None = None, processes: Any = None
) -> Feed:
    """What the loop does before the first step; the reference log-probs tell pairs apart."""
    with ReferenceStore.open(folder, "f" * 16, {}, shard_rows=50) as store:
        for examples in feed.lacking(store):
            for example in examples:
                sides = (example.chosen, example.rejected)
                chosen, rejected = (np.full(len(side.weights), -1.0 - len(side.ids), np.float32) for side in sides)
                store.add(example.example_hash, chosen, rejected)
    (processes or Alone()).collect([])  # all have written what they computed
    feed.begin(ReferenceStore.open(folder, "f" * 16, {}), step, state)
    return feed


@contextmanager
def opened(world: World, processes: Any = None, **changes: Any) -> Iterator[Feed]:
    """A feed, before the reference pass."""
    config = world.config(**({"max_length": 256, "shuffle_block": 20} | changes))
    renderer = Renderer(tiny_tokenizer(), max_length=config.max_length)
    with open_feed(config, (1,), renderer, processes or Alone(), TrainProgress()) as feed:
        yield feed


def content(example: Example) -> tuple[Any, ...]:
    """All that training sees of an example."""
    sides = (example.chosen, example.rejected)
    return (example.row, example.example_hash, *(part.tobytes() for s in sides for part in (s.ids, s.weights)))


def taken(portion: Portion) -> tuple[Any, ...]:
    """All that training sees of a portion, and of the references of its pairs."""
    for example in (*portion.mine, portion.spare):
        for side, logps in zip(
            (example.chosen, example.rejected), portion.reference[example.example_hash], strict=True
        ):
            assert logps.tolist() == [-1.0 - len(side.ids)] * len(side.weights) or example is portion.spare
    return portion.count, portion.tokens, tuple(map(content, portion.mine))


def run(
    world: World, folder: Path, processes: Any = None, first: int = 0, state: Any = None, **changes: Any
) -> tuple[list[Any], Feed, list[Any]]:
    """The portions of all steps from `first` on, the feed, and its state before each of them."""
    with opened(world, processes, **changes) as feed:
        prepare(feed, folder, first, state, processes)
        states, portions = [], []
        for step in range(first, feed.plan.steps):
            states.append(json.loads(json.dumps(feed.state(step))))
            portions.append(taken(feed.step(step)))
        return portions, feed, states


def rows_of(portion: tuple[Any, ...]) -> list[int]:
    """The rows of a portion."""
    return [example[0] for example in portion[2]]


def rows_in(portions: list[tuple[Any, ...]]) -> list[int]:
    """The rows of several."""
    return [row for portion in portions for row in rows_of(portion)]


@BOTH
def test_every_epoch_sees_every_pair_once_in_its_own_order(world: World, streaming: bool) -> None:
    portions, feed, _ = run(world, world.folder / "r", streaming=streaming, epochs=2.0)
    per_epoch = feed.plan.steps_per_epoch
    assert [portion[0] for portion in portions] == [8, 8, 8, 8, 8, 8, 4] * 2
    orders = [rows_in(portions[epoch * per_epoch :][:per_epoch]) for epoch in (0, 1)]
    held = {example.row for example in feed.heldout.mine}
    assert len(held) == feed.heldout.count == feed.counts.heldout == 8
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(set(range(60)) - held)
    assert [set(rows_of(p)) for p in portions[:per_epoch]] != [set(rows_of(p)) for p in portions[per_epoch:]]
    assert feed.counts.pairs == 52
    other, _, _ = run(world, world.folder / "r", streaming=streaming, epochs=2.0, seed=1)
    assert [rows_of(p) for p in other] != [rows_of(p) for p in portions]


def test_a_stream_is_shuffled_within_its_blocks(world: World) -> None:
    """Of --shuffle-block rows, made up to whole steps; the held-out pairs are the first."""
    portions, _, _ = run(world, world.folder / "r", streaming=True)
    blocks = [rows_in(portions[i : i + 3]) for i in (0, 3)]
    assert [sorted(block) for block in blocks] == [list(range(8, 32)), list(range(32, 56))]
    assert all(block != sorted(block) for block in blocks)


@BOTH
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_pairs_of_one(world: World, streaming: bool, count: int) -> None:
    """Each pair of a step falls to one of them; what all of them must know, they know; none reads what it need not."""
    changes: dict[str, Any] = {"streaming": streaming, "batch_size": 7, "limit": 50, "missing": "drop"}
    rendered = Counter[int]()
    render = Renderer.render

    def counting(self: Renderer, pair: Any) -> Any:
        rendered[threading.get_ident()] += 1
        return render(self, pair)

    alone, feed, states = run(world, world.folder / "r", **changes)
    together = in_ranks(count, lambda processes: run(world, world.folder / "r", processes, **changes))
    for portions, other, other_states in together:
        assert [portion[:2] for portion in portions] == [portion[:2] for portion in alone]
        assert (other.digest, other.counts, other_states) == (feed.digest, feed.counts, states)
        assert sum(len(portion[2]) for portion in portions) <= -(-42 // count) + len(portions)
    for step, portion in enumerate(alone):
        union = [example for portions, _, _ in together for example in portions[step][2]]
        assert sorted(union) == sorted(portion[2])
    held = [content(example) for _, other, _ in together for example in other.heldout.mine]
    assert sorted(held) == sorted(content(example) for example in feed.heldout.mine)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Renderer, "render", counting)
        with opened(world, **changes) as one:
            del one
        everything = sum(rendered.values())
        rendered.clear()

        def join(processes: Any) -> None:
            with opened(world, processes, **changes):
                # Besides its share: of a stream all look for a pair that all have, and read a window for it.
                assert rendered[threading.get_ident()] <= everything / count + (42 if streaming else 2)

        in_ranks(count, join)


@BOTH
@pytest.mark.parametrize("count", [1, 2])
def test_rebuilt_at_any_step_it_goes_on_alike(world: World, streaming: bool, count: int) -> None:
    """Also after a change of the number of processes."""
    changes: dict[str, Any] = {"streaming": streaming, "batch_size": 5, "epochs": 2.0}
    whole = in_ranks(count, lambda processes: run(world, world.folder / "r", processes, **changes))
    states = whole[0][2]
    for step in (1, 4, 7, 11, 15, 21):
        state = states[step]
        again = in_ranks(count, lambda p, s=step, x=state: run(world, world.folder / "r", p, s, x, **changes))  # type: ignore[misc]
        for (portions, feed, _), (after, rebuilt, _) in zip(whole, again, strict=True):
            assert after[:8] == portions[step : step + 8]
            assert (rebuilt.counts, rebuilt.digest) == (feed.counts, feed.digest)
    if count == 2:
        alone, _, _ = run(world, world.folder / "r", None, 4, states[4], **changes)
        union = sorted(example for portions, _, _ in whole for example in portions[4][2])
        assert sorted(alone[0][2]) == union


@BOTH
def test_a_dropped_step_is_not_counted_twice(world: World, streaming: bool) -> None:
    """Ctrl-C drops a step that the feed has handed out."""
    with opened(world, streaming=streaming) as feed:
        prepare(feed, world.folder / "r")
        feed.step(0)
        before = feed.state(1)
        feed.step(1)
        assert feed.state(1) == before
        with opened(world, streaming=streaming) as rebuilt:
            prepare(rebuilt, world.folder / "r", 1, before)
            for step in range(1, rebuilt.plan.steps):
                rebuilt.step(step)
            assert rebuilt.counts.pairs == 52


def add_rows(world: World, *rows: dict[str, str]) -> None:
    """Rows at the end of the data set."""
    with world.pairs.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@BOTH
def test_rows_that_cannot_be_used_are_counted(empty_world: World, streaming: bool) -> None:
    world = empty_world
    world.write_pairs(40)
    add_rows(
        world,
        {"prompt": "?", "chosen": " ", "rejected": "no"},
        {"prompt": "word " * 400, "chosen": "a", "rejected": "b"},
    )
    world.annotate(world.pairs, take=lambda pair: pair.row != 30)
    expected = {
        "chosen is empty": 1,
        "the prompt alone fills --max-length 256": 1,
        "no weights in the cache (--missing drop)": 1,
    }
    changes: dict[str, Any] = {"streaming": streaming, "eval_split": "none", "missing": "drop"}
    portions, feed, _ = run(world, world.folder / "r", **changes)
    assert sum(feed.counts.skipped.values()) == 3
    assert expected.items() - feed.counts.skipped.items() <= {("chosen is empty", 1)}  # worded elsewhere
    assert sum(portion[0] for portion in portions) == feed.counts.pairs == 39
    _, feed, _ = run(world, world.folder / "u", **(changes | {"missing": "uniform"}))
    assert (feed.counts.uniform, feed.counts.pairs) == (1, 40)
    with pytest.raises(MissingRows, match=r"1 of \d+ pairs have no weights.*row 30.*--missing drop"):
        run(world, world.folder / "e", **(changes | {"missing": "error"}))


def test_a_step_of_a_stream_may_keep_none(empty_world: World) -> None:
    world = empty_world
    world.annotate(world.write_pairs(8))
    add_rows(world, *[{"prompt": "?", "chosen": " ", "rejected": "no"}] * 8)
    portions, feed, _ = run(world, world.folder / "r", streaming=True, eval_split="none", shuffle_block=8)
    assert [portion[0] for portion in portions] == [8, 0]
    assert (feed.counts.pairs, sum(feed.counts.skipped.values())) == (8, 8)


def test_nothing_is_left_of_a_stream(world: World) -> None:
    for streaming in (False, True):
        with pytest.raises(DataError, match="left to train on: 60 the prompt alone fills --max-length 16") as caught:
            run(world, world.folder / "r", streaming=streaming, max_length=16, eval_split="none")
        assert caught.value.together
    lines = world.pairs.read_text("utf-8").splitlines(keepends=True)
    world.pairs.write_text("".join(lines[:8]) + lines[0], "utf-8")
    with pytest.raises(DataError, match="no pair is left to train on: 1 also held out, or of a prompt that is; 8 held"):
        run(world, world.folder / "r", streaming=True)


def test_the_first_pairs_of_a_stream_are_held_out_with_their_prompts(empty_world: World) -> None:
    world = empty_world
    rows = [{"prompt": f"Question {i % 7}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(30)]
    world.pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    world.annotate(world.pairs)
    portions, feed, _ = run(world, world.folder / "r", streaming=True, eval_split="3")
    assert sorted(example.row for example in feed.heldout.mine) == [0, 1, 2]
    assert {row % 7 for portion in portions for row in rows_of(portion)} == {3, 4, 5, 6}
    assert feed.counts.pairs + sum(feed.counts.skipped.values()) == 27
    with pytest.raises(UsageError, match="is a share, which --streaming cannot draw"):
        run(world, world.folder / "r", streaming=True, eval_split="0.1")


def test_auto_and_a_split_of_its_own_in_a_stream(empty_world: World) -> None:
    world = empty_world
    folder = world.folder / "splits"
    folder.mkdir()
    world.annotate(world.write_pairs(100, "splits/train.jsonl"))
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(lines[90:]), "utf-8")
    named: dict[str, Any] = {"dataset": str(folder), "split": "train", "streaming": True}
    portions, feed, _ = run(world, world.folder / "r", **named, eval_split="test")
    assert (feed.counts.heldout, feed.counts.pairs) == (10, 90)
    assert max(row for portion in portions for row in rows_of(portion)) == 89
    _, feed, _ = run(world, world.folder / "r", **named, eval_split="auto")
    assert (feed.counts.heldout, feed.counts.pairs) == (2, 98)


@pytest.fixture
def splits(empty_world: World) -> dict[str, Any]:
    """A train split of 40 pairs and a test split that holds the last 10 of them: the options that name it."""
    folder = empty_world.folder / "splits"
    folder.mkdir()
    empty_world.annotate(empty_world.write_pairs(40, "splits/train.jsonl"))
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(lines[30:]), "utf-8")
    return {"dataset": str(folder), "split": "train", "eval_split": "test"}


@BOTH
def test_a_limit_is_for_the_pairs_to_train_on(empty_world: World, splits: dict[str, Any], streaming: bool) -> None:
    _, feed, _ = run(empty_world, empty_world.folder / "r", streaming=streaming, limit=6, **splits)
    assert (feed.counts.pairs, feed.counts.heldout) == (6, 10)


@BOTH
def test_pairs_of_both_splits_are_counted(empty_world: World, splits: dict[str, Any], streaming: bool) -> None:
    portions, feed, _ = run(empty_world, empty_world.folder / "r", streaming=streaming, **splits)
    assert sorted(rows_in(portions)) == list(range(30))
    assert feed.counts.skipped == {"also in the held-out split": 10}


@BOTH
@pytest.mark.parametrize("rows", [0, 1])
def test_a_split_without_a_usable_pair(empty_world: World, splits: dict[str, Any], streaming: bool, rows: int) -> None:
    """Asked to evaluate on it, a run does not go on without."""
    folder, row = Path(splits["dataset"]), {"prompt": "?", "chosen": " ", "rejected": "no"}
    train = [json.loads(line) for line in (folder / "train.jsonl").read_text("utf-8").splitlines()]
    for split, table in (("train", pa.Table.from_pylist(train)), ("test", pa.Table.from_pylist([row]).slice(0, rows))):
        pq.write_table(table, folder / f"{split}.parquet")
        (folder / f"{split}.jsonl").unlink()
    with pytest.raises(UsageError, match="--eval-split test: no pair of that split can be used") as caught:
        run(empty_world, empty_world.folder / "r", streaming=streaming, **splits)
    assert caught.value.together


def test_weights_of_another_recipe_are_another_digest(world: World) -> None:
    """A cache that was made anew in its folder, from the same pairs."""
    first = run(world, world.folder / "r", streaming=True)[1].digest
    for template, same in (("{question} {answer_a} {answer_b}", True), ("{answer_a} {answer_b} {question}", False)):
        shutil.rmtree(world.weights)
        world.annotate(world.pairs, judge_template=template)
        assert (run(world, world.folder / "r", streaming=True)[1].digest == first) is same


def test_limits_and_what_was_asked_for_of_stage_one(empty_world: World) -> None:
    world = empty_world
    world.write_pairs(60)
    drawn = set(draw_rows(load(resolve(str(world.pairs))), 20, 5))
    world.annotate(world.pairs, take=lambda pair: pair.row in drawn, limit=20, seed=5)
    portions, feed, _ = run(world, world.folder / "r", streaming=True, eval_split="none")
    assert {row for portion in portions for row in rows_of(portion)} == drawn
    assert feed.counts.skipped == {"not among the pairs that were annotated": 40}
    assert [portion[0] for portion in portions] == [8, 8, 4]
    limited, _, _ = run(world, world.folder / "r", streaming=True, eval_split="none", limit=30)
    assert {row for portion in limited for row in rows_of(portion)} == {row for row in drawn if row < 30}


def test_a_stream_out_of_the_cache_itself(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), include_text=True)
    empty_world.pairs.unlink()
    portions, feed, states = run(empty_world, empty_world.folder / "r", streaming=True)
    assert (feed.counts.pairs, feed.counts.heldout) == (52, 8)
    again, _, _ = run(empty_world, empty_world.folder / "r", None, 5, states[5], streaming=True)
    assert again == portions[5:]


def test_a_stream_of_unknown_length_needs_its_steps(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PairStream, "total", None)
    with pytest.raises(UsageError, match="is not known beforehand; pass --max-steps"):
        run(world, world.folder / "r", streaming=True)
    portions, _, _ = run(world, world.folder / "r", streaming=True, max_steps=9, eval_split="none")
    assert [portion[0] for portion in portions] == [8, 8, 8, 8, 8, 8, 8, 4, 8]


def test_what_the_other_thread_meets_is_raised_here_and_it_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(world, streaming=True) as feed:
        prepare(feed, world.folder / "r")
        feed.step(0)

        def broken(*_: object) -> None:
            raise DataError("cannot read pairs.jsonl")

        monkeypatch.setattr(Sorter, "examples", broken)
        # The block after this one may have been made ready before.
        assert [feed.step(step).count for step in (1, 2)] == [8, 8]
        with pytest.raises(DataError, match=r"cannot read pairs\.jsonl"):
            _ = [feed.step(step) for step in range(3, feed.plan.steps)]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_a_file_that_shrinks_is_said_in_one_line(world: World) -> None:
    with opened(world, streaming=True, batch_size=4, shuffle_block=4) as feed:
        lines = world.pairs.read_text("utf-8").splitlines(keepends=True)
        world.pairs.write_text("".join(lines[:40]), "utf-8")
        with pytest.raises(DataError, match="has become shorter since the run began"):
            prepare(feed, world.folder / "r")


def test_another_order_of_the_rows_is_another_digest(world: World) -> None:
    first = run(world, world.folder / "r", streaming=True)[1].digest
    assert run(world, world.folder / "r", streaming=True, beta=0.7)[1].digest == first
    lines = world.pairs.read_text("utf-8").splitlines(keepends=True)
    world.pairs.write_text("".join([*lines[:20], *lines[30:], *lines[20:30]]), "utf-8")
    assert run(world, world.folder / "r", streaming=True)[1].digest != first


@pytest.mark.parametrize("sizes", [(200, 800), pytest.param((2_000, 10_000), marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_a_stream(empty_world: World, sizes: tuple[int, int]) -> None:
    """But for the two indices, of weights and reference log-probs."""
    peaks = {}
    for pairs in sizes:
        world = World(folder=empty_world.folder / str(pairs), model=empty_world.model)
        world.folder.mkdir()
        world.annotate(world.write_pairs(pairs), shard_rows=50)
        config = world.config(streaming=True, eval_split="16", shuffle_block=64)
        renderer = Renderer(tiny_tokenizer(), max_length=256)
        # Decoded row groups are kept within a bound of their own, which is large for a test, as the groups are.
        with WeightsCache.open(world.weights, layers=(1,), cache_bytes=1) as cache:
            feed = StreamedFeed(config, cache, renderer, Alone(), TrainProgress())
            prepare(feed, world.folder / "r")
            feed.begin(ReferenceStore.open(world.folder / "r", "f" * 16, {}, cache_bytes=1))
            tracemalloc.start()
            for step in range(feed.plan.steps):
                feed.step(step)
            peaks[pairs] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            feed.close()
    # An example of this data set takes more than 1,000 bytes; an entry of the indices 40, and what is allocated wavers.
    assert peaks[sizes[1]] - peaks[sizes[0]] < (sizes[1] - sizes[0]) * 200, peaks
