"""Pairs out of a cache: the one that is asked for, and the one that a data-set card shows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.inspect.samples import make_pair, write_cache
from tests.weights_cache.samples import LAYERS, RECIPE, make_side
from twdpo.errors import CacheError, DataError, UsageError
from twdpo.inspect.examples import card_example, default_layers, find_example
from twdpo.preferences import Pair, load, resolve
from twdpo.weights_cache import CacheWriter, Manifest, WeightRow, WeightsCache
from twdpo.weights_cache.card import fits
from twdpo.weights_cache.index import Decoded, ShardIndex

DEMO = {"name": "demo", "kind": "demo", "location": "demo", "split": "train"}


def write(folder: Path, pairs: list[Pair], source: dict[str, str]) -> Path:
    rng = np.random.default_rng(0)
    with CacheWriter.open(folder, RECIPE, dataset=source) as writer:
        for pair in pairs:
            row = WeightRow(
                example_hash=pair.example_hash,
                chosen=make_side(rng, 3),
                rejected=make_side(rng, 3),
            )
            writer.add(row)
    return folder


def demo_pairs() -> list[Pair]:
    return [pair for pair in load(resolve("demo", "train")) if isinstance(pair, Pair)]


def test_a_pair_that_the_picture_shows_whole_comes_first(tmp_path: Path) -> None:
    pairs = demo_pairs()
    chosen = card_example(write(tmp_path, pairs, DEMO))
    assert chosen is not None
    assert fits(chosen)
    assert chosen == next(pair for pair in pairs if fits(pair))


def test_where_none_fits_it_is_the_first_of_the_cache(tmp_path: Path) -> None:
    short = [pair for pair in demo_pairs() if not fits(pair)][2:5]
    assert card_example(write(tmp_path, short, DEMO)) == short[0]


def test_a_data_set_that_is_not_there_gives_none(tmp_path: Path) -> None:
    gone = {"name": str(tmp_path / "gone.jsonl"), "kind": "path", "location": "gone"}
    assert card_example(write(tmp_path / "cache", demo_pairs()[:2], gone)) is None
    assert card_example(write(tmp_path / "nameless", demo_pairs()[:2], {"kind": "path"})) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pairs with their texts."""
    pairs = [make_pair(f"chosen {i}", f"rejected {i}") for i in range(20)]
    return write_cache(tmp_path_factory.mktemp("cache") / "cache", pairs)


def test_by_number_by_hash_and_by_chance(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        hashes = [row.example_hash for row in cache.rows()]
        for number in (0, 7, 19):
            by_number = find_example(cache, str(number))
            by_hash = find_example(cache, hashes[number].upper())
            assert by_number.number == by_hash.number == number
            assert by_number.row.example_hash == by_hash.row.example_hash == hashes[number]
            assert by_number.pair == by_hash.pair == make_pair(f"chosen {number}", f"rejected {number}")
        drawn = {find_example(cache, "random").number for _ in range(100)}
        assert len(drawn) > 5
        assert drawn <= set(range(20))


def test_a_beginning_that_several_hashes_have_is_refused_with_their_number(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        hashes = [row.example_hash for row in cache.rows()]
        letters = {key[0] for key in hashes if not key[0].isdecimal()}
        letter, count = Counter(key[0] for key in hashes if key[0] in letters).most_common(1)[0]
        assert count > 1
        with pytest.raises(UsageError, match=f"--example {letter}: {count} pairs have a hash that begins so"):
            find_example(cache, letter)
        with pytest.raises(UsageError, match="no pair of the cache has a hash that begins so"):
            find_example(cache, "zz")
        with pytest.raises(UsageError, match="holds 20 pairs, 0 to 19"):
            find_example(cache, "20")
        with pytest.raises(UsageError, match="--split train is of no data set"):
            find_example(cache, "0", split="train")


def test_a_pair_is_decoded_without_those_before_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units: list[int] = []
    decode = ShardIndex.decode

    def spy(self: ShardIndex, unit: int, span: int = 1, columns: Sequence[str] | None = None) -> Decoded:
        units.append(unit)
        return decode(self, unit, span, columns)

    many = folder.parent / "many"
    with CacheWriter.open(many, RECIPE, shard_rows=2) as writer, WeightsCache.open(folder) as cache:
        for row in cache.rows():
            writer.add(replace(row, prompt=None, chosen_text=None, rejected_text=None))
    monkeypatch.setattr(ShardIndex, "decode", spy)
    with WeightsCache.open(many) as cache:
        last = find_example(cache, "17")
        find_example(cache, last.row.example_hash[:16])
    assert len(units) == 2, "one unit of row groups each"


def test_texts_come_from_the_data_set_in_whatever_order(tmp_path: Path) -> None:
    pairs = [make_pair(f"chosen {i}", f"rejected {i}") for i in range(6)]
    folder = write_cache(tmp_path / "cache", pairs, text=False)
    for name, order in (("same", pairs), ("turned", pairs[::-1]), ("without", pairs[:2])):
        rows = [{"prompt": p.prompt[0].content, "chosen": p.chosen, "rejected": p.rejected} for p in order]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with WeightsCache.open(folder) as cache:
        for number in (0, 4):
            for name in ("same", "turned"):
                found = find_example(cache, str(number), dataset=str(tmp_path / f"{name}.jsonl"))
                assert found.pair is not None
                assert (found.pair.chosen, found.pair.rejected) == (pairs[number].chosen, pairs[number].rejected)
        assert find_example(cache, "4", dataset=str(tmp_path / "without.jsonl")).pair is None
        assert find_example(cache, "4").pair is None, "the manifest names no data set"
        with pytest.raises(DataError, match="none.jsonl"):
            find_example(cache, "4", dataset="none.jsonl")


def test_layers_by_their_names_and_by_default() -> None:
    manifest = Manifest(recipe=RECIPE)
    assert default_layers(manifest) == (29,)
    assert default_layers(replace(manifest, defaults={"attn_source": "mean:0,3"})) == (0, 3)
    assert default_layers(replace(manifest, defaults={"attn_source": "7"})) == (29,), "not in this cache"
    assert default_layers(manifest, "mean") == LAYERS
    with pytest.raises(UsageError, match="--layer 7: layer 7 is not in the cache, which holds 0, 3, 29"):
        default_layers(manifest, "7")
    with pytest.raises(UsageError, match="--layer 'deep' is not understood"):
        default_layers(manifest, "deep")


def test_an_empty_cache_is_said(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path, RECIPE):
        pass
    with WeightsCache.open(tmp_path) as cache:
        for which in ("0", "random", "abcdef"):
            with pytest.raises(CacheError, match="holds no pairs yet; run twdpo annotate first"):
                find_example(cache, which)
