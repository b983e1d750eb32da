"""Joining pairs with weights: what is used, held out, missing, left out; and that the counts add up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tests.fixtures.tiny_models import tiny_tokenizer
from tests.pipeline.train.conftest import World
from twdpo.errors import DataError, MissingRows, UsageError
from twdpo.pipeline.train import TrainProgress
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.processes import Alone
from twdpo.pipeline.train.render import Renderer
from twdpo.pipeline.train.resident import ResidentFeed
from twdpo.preferences import Pair
from twdpo.weights_cache import CacheWriter, Manifest, WeightsCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """The examples of a run, and what became of the other rows."""

    train: list[Example]
    heldout: list[Example]
    skipped: Mapping[str, int]
    uniform: int
    truncated: int


def joined(world: World, max_length: int = 256, **changes: Any) -> Examples:
    """The examples of a run in one process."""
    renderer = Renderer(tiny_tokenizer(), max_length=max_length)
    with WeightsCache.open(world.weights, layers=(1,)) as cache:
        feed = ResidentFeed(world.config(**changes), cache, renderer, Alone(), TrainProgress())
    counts = feed.counts
    assert (counts.pairs, counts.heldout) == (len(feed.train), len(feed.held_out))
    return Examples(
        train=feed.train,
        heldout=feed.held_out,
        skipped=counts.skipped,
        uniform=counts.uniform,
        truncated=counts.truncated,
    )


def hashes(examples: list[Example]) -> set[str]:
    """Their keys."""
    return {example.example_hash for example in examples}


def odd(pair: Pair) -> bool:
    """Every second row."""
    return pair.row % 2 == 1


def test_every_pair_is_trained_on_or_held_out(world: World) -> None:
    examples = joined(world)
    assert (len(examples.train), len(examples.heldout), dict(examples.skipped)) == (52, 8, {})
    assert not hashes(examples.train) & hashes(examples.heldout)
    for example in examples.train:
        for side in (example.chosen, example.rejected):
            assert len(side.weights) == len(side.ids) - side.prompt_length
            assert 0 < side.weights.sum() == pytest.approx(np.count_nonzero(side.weights), rel=1e-3)


def test_the_sink_fix_leaves_weights_without_a_sink_alone(world: World) -> None:
    manifest = Manifest.load(world.weights)
    fixed = {each.example_hash: each.chosen.weights for each in joined(world).train}
    replace(manifest, defaults={**manifest.defaults, "sink_fix": False}).save(world.weights)
    for each in joined(world).train:
        assert not np.array_equal(each.chosen.weights, fixed[each.example_hash])
    unfixed = {each.example_hash: each.chosen.weights for each in joined(world, sink_fix=False).train}
    assert all(np.array_equal(each.chosen.weights, unfixed[each.example_hash]) for each in joined(world).train)


def test_held_out_pairs_depend_on_text_and_seed_only(world: World) -> None:
    first = hashes(joined(world).heldout)
    lines = world.pairs.read_text("utf-8").splitlines(keepends=True)
    world.pairs.write_text("".join(reversed(lines)), "utf-8")
    assert hashes(joined(world).heldout) == first
    assert hashes(joined(world, seed=1).heldout) != first


def test_pairs_of_one_prompt_stay_together(empty_world: World) -> None:
    rows = [{"prompt": f"Question {i // 3}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(30)]
    empty_world.pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    empty_world.annotate(empty_world.pairs)
    examples = joined(empty_world, eval_split="8")
    assert len(examples.heldout) == 6  # two whole prompts; a third would be one pair too many
    assert len({example.row // 3 for example in examples.heldout}) == 2


def test_missing_rows_are_an_error(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), take=odd)
    with pytest.raises(MissingRows) as caught:
        joined(empty_world)
    message = str(caught.value)
    assert "30 of 60 pairs have no weights" in message
    assert "row 0" in message
    assert "twdpo annotate" in message
    assert "--missing drop" in message
    assert "\n" not in message


def test_missing_rows_can_be_dropped(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), take=odd)
    examples = joined(empty_world, missing="drop")
    assert len(examples.train) + len(examples.heldout) == 30
    assert sum(examples.skipped.values()) == 30
    assert all(example.row % 2 == 1 for example in examples.train)


def test_missing_rows_can_be_uniform(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), take=odd)
    examples = joined(empty_world, missing="uniform")
    assert len(examples.train) + len(examples.heldout) == 60
    assert examples.uniform == 30
    for example in examples.train:
        even = set(example.chosen.weights.tolist()) == {0.0, 1.0}
        assert even == (example.row % 2 == 0)


def test_a_data_set_annotated_with_a_limit_is_not_missing_the_rest(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), take=lambda pair: pair.row < 30, limit=30)
    examples = joined(empty_world)
    assert len(examples.train) + len(examples.heldout) == 30
    assert examples.skipped == {"not among the pairs that were annotated": 30}
    with pytest.raises(MissingRows):
        joined(empty_world, dataset=str(empty_world.pairs))


def test_of_what_was_asked_for_nothing_may_be_missing(empty_world: World) -> None:
    """An annotation of 30 pairs that was stopped half-way is not mistaken for a whole one."""
    empty_world.annotate(empty_world.write_pairs(60), take=lambda pair: pair.row < 17, limit=30)
    with pytest.raises(MissingRows, match="13 of 60 pairs"):
        joined(empty_world)


def test_what_stage_one_left_out_is_not_missing(empty_world: World) -> None:
    path = empty_world.write_pairs(60)
    empty_world.annotate(path, take=odd)
    with CacheWriter.open(empty_world.weights, _recipe(empty_world)) as writer:
        for row, key in _even_hashes(empty_world):
            writer.reject(row, "an answer has no tokens", key, str(path))
    examples = joined(empty_world)
    assert sum(examples.skipped.values()) == 30
    assert "rejects.jsonl" in next(iter(examples.skipped))


def _recipe(world: World) -> Any:
    with WeightsCache.open(world.weights) as cache:
        return cache.recipe


def _even_hashes(world: World) -> list[tuple[int, str]]:
    from twdpo.preferences import load, resolve

    pairs = (item for item in load(resolve(str(world.pairs))) if isinstance(item, Pair))
    return [(pair.row, pair.example_hash) for pair in pairs if not odd(pair)]


def test_unusable_rows_are_counted_with_their_reason(empty_world: World) -> None:
    path = empty_world.write_pairs(60)
    empty_world.annotate(path)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"prompt": "?", "chosen": " ", "rejected": "no"}) + "\n")
    examples = joined(empty_world)
    assert len(examples.train) + len(examples.heldout) == 60
    assert sum(examples.skipped.values()) == 1


def test_pairs_that_cannot_be_rendered_are_counted(world: World) -> None:
    long = {"prompt": "word " * 400, "chosen": "a", "rejected": "b"}
    with world.pairs.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(long) + "\n")
    world.annotate(world.pairs)
    examples = joined(world)
    assert examples.skipped == {"the prompt alone fills --max-length 256": 1}
    assert len(examples.train) + len(examples.heldout) == 60


def test_cut_answers_are_counted(world: World) -> None:
    whole, cut = joined(world), joined(world, max_length=48)
    assert whole.truncated == 0
    assert 0 < cut.truncated <= 60
    assert all(example.longest <= 48 for example in cut.train)
    lengths = [example.longest for example in [*whole.train, *whole.heldout]]
    for length in (max(lengths), max(lengths) - 1):
        assert joined(world, max_length=length).truncated == sum(one > length for one in lengths)


def test_nothing_left(world: World) -> None:
    with pytest.raises(DataError, match="no pair is left to train on: 60 the prompt alone fills --max-length 16"):
        joined(world, max_length=16)


def test_limit_takes_the_first_rows(world: World) -> None:
    examples = joined(world, limit=20, eval_split="none")
    assert sorted(example.row for example in examples.train) == list(range(20))


def test_a_cache_with_texts_needs_no_data_set(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), include_text=True)
    empty_world.pairs.unlink()
    examples = joined(empty_world)
    assert (len(examples.train), len(examples.heldout)) == (52, 8)


def test_a_data_set_that_has_gone_is_named(world: World) -> None:
    world.pairs.unlink()
    with pytest.raises(DataError, match=r"pairs\.jsonl"):
        joined(world)


def test_another_data_set(world: World) -> None:
    other = world.write_pairs(10, "other.jsonl")
    assert len(joined(world, dataset=str(other), eval_split="none").train) == 10


def test_a_named_split_is_held_out(empty_world: World) -> None:
    folder = empty_world.folder / "splits"
    folder.mkdir()
    empty_world.write_pairs(40, "splits/train.jsonl")
    lines = (folder / "train.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(lines[30:]), "utf-8")
    empty_world.annotate(folder / "train.jsonl")
    examples = joined(empty_world, dataset=str(folder), split="train", eval_split="test")
    assert len(examples.heldout) == 10
    assert len(examples.train) == 30  # pairs that stand in both are held out
    assert not hashes(examples.train) & hashes(examples.heldout)


def test_a_split_of_nothing(empty_world: World) -> None:
    empty_world.annotate(empty_world.write_pairs(60), include_text=True)
    manifest = json.loads((empty_world.weights / "manifest.json").read_text("utf-8"))
    assert manifest["sources"]
    with pytest.raises((UsageError, DataError)) as caught:
        joined(empty_world, eval_split="nowhere")
    assert "nowhere" in str(caught.value)


def test_the_order_of_a_run_is_that_of_the_data_set(world: World) -> None:
    rows = [example.row for example in joined(world).train]
    assert rows == sorted(rows)
