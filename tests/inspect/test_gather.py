"""Pairs drawn from a cache, and their texts found again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.weights_cache.samples import LAYERS, RECIPE, fill, make_row
from twdpo.errors import CacheError, DataError, UsageError
from twdpo.inspect.gather import draw, find_pairs
from twdpo.preferences import Pair
from twdpo.weights_cache import CacheWriter, WeightsCache


def as_line(number: int) -> str:
    row = make_row(number, text=True)
    prompt = [{"role": role, "content": content} for role, content in row.prompt or ()]
    return json.dumps(
        {
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": row.chosen_text}],
            "rejected": [{"role": "assistant", "content": row.rejected_text}],
        }
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data set of rows 0 to 19, backwards, with a line that is no pair."""
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*(as_line(number) for number in reversed(range(20))), '{"prompt": "x"}', ""]), "utf-8")
    return path


def without_text(folder: Path, source: Path) -> Path:
    described = {"name": str(source), "kind": "path", "location": str(source)}
    with CacheWriter.open(folder, RECIPE, dataset=described, shard_rows=6) as writer:
        for number in range(20):
            writer.add(make_row(number))
    return folder


def test_the_same_seed_draws_the_same_pairs_in_cache_order(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(30), text=True)
    with WeightsCache.open(tmp_path / "cache", layers=LAYERS[:1]) as cache:
        walked = [row.example_hash for row in cache.rows()]
        drawn, again, other = draw(cache, 10, seed=3), draw(cache, 10, seed=3), draw(cache, 10, seed=4)
        everything = draw(cache, 99)
    assert np.all(np.diff(drawn.numbers) > 0)
    assert [example.row.example_hash for example in drawn.examples] == [walked[n] for n in drawn.numbers]
    assert np.array_equal(drawn.numbers, again.numbers)
    assert not np.array_equal(drawn.numbers, other.numbers)
    assert everything.numbers.tolist() == list(range(30))
    assert drawn.without_text == 0
    assert all(e.pair is not None and e.pair.example_hash == e.row.example_hash for e in drawn.examples)


def test_every_pair_is_drawn_alike(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(10))
    with WeightsCache.open(tmp_path / "cache") as cache:
        counts = np.zeros(10)
        for seed in range(200):
            counts[draw(cache, 3, seed=seed).numbers] += 1
    # Binomial with mean 60 and deviation 6.5.
    assert np.all(np.abs(counts - 60) < 30)


def test_texts_come_from_the_source_in_the_manifest(tmp_path: Path, data: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    with WeightsCache.open(without_text(tmp_path / "cache", data)) as cache:
        drawn = draw(cache, 7, progress=lambda *said: told.append(said))
    assert drawn.without_text == 0
    assert all(e.pair is not None and e.pair.example_hash == e.row.example_hash for e in drawn.examples)
    assert {task for task, _, _ in told} == {"reading weights", "finding texts"}


def test_texts_that_are_not_found_are_missing_not_wrong(tmp_path: Path, data: Path) -> None:
    folder = without_text(tmp_path / "cache", data)
    some = tmp_path / "some.jsonl"
    some.write_text("\n".join(as_line(number) for number in range(5)), "utf-8")
    with WeightsCache.open(folder) as cache:
        drawn = draw(cache, 20, dataset=str(some))
        assert drawn.without_text == 15
        assert sum(isinstance(e.pair, Pair) for e in drawn.examples) == 5
        # What the manifest names may be gone; what is named by hand must be there.
        data.unlink()
        assert draw(cache, 20).without_text == 20
        with pytest.raises(DataError):
            draw(cache, 20, dataset=str(tmp_path / "gone.jsonl"))


def test_the_pass_ends_with_the_last_pair_that_is_wanted(tmp_path: Path, data: Path) -> None:
    first = make_row(19).example_hash
    data.write_text(data.read_text("utf-8").split("\n")[0] + "\nthis is no JSON\n", "utf-8")
    with WeightsCache.open(without_text(tmp_path / "cache", data)) as cache:
        assert set(find_pairs(cache, [first])) == {first}


def test_mistakes(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(2))
    with CacheWriter.open(tmp_path / "empty", RECIPE):
        pass
    with WeightsCache.open(tmp_path / "cache") as cache:
        with pytest.raises(UsageError, match="--examples 0"):
            draw(cache, 0)
        with pytest.raises(UsageError, match="--dataset"):
            draw(cache, 1, split="train")
    with WeightsCache.open(tmp_path / "empty") as cache, pytest.raises(CacheError, match="no pairs yet"):
        draw(cache, 1)
