"""The index: hashes to places, also where hashes are nearly equal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights_cache.samples import RECIPE, fill
from twdpo.weights_cache.index import ShardIndex, pack_column, pack_hashes
from twdpo.weights_cache.schema import reference_schema, shard_metadata, weights_schema
from twdpo.weights_cache.shards import ShardKind, write_shard

KIND = ShardKind(kind="reference", fingerprint="f")
# Few different digits at few places, so that halves, and whole hashes, are often equal.
hashes = st.builds(lambda a, b: a * 16 + b * 15 + "f", st.sampled_from("0a"), st.sampled_from("07"))


def make_index(data: Path, shards: list[list[str]]) -> ShardIndex:
    data.mkdir(exist_ok=True)
    index = ShardIndex(data, KIND)
    for keys in shards:
        empty: list[list[float]] = [[]] * len(keys)
        table = pa.table([keys, empty, empty], schema=reference_schema())
        index.add_shard(write_shard(data, table, shard_metadata(kind="reference", fingerprint="f")))
    return index


@given(st.lists(st.lists(hashes, max_size=5), max_size=4), st.lists(hashes))
@settings(deadline=None)
def test_finds_the_first_row_of_every_hash(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], asked: list[str]
) -> None:
    index = make_index(tmp_path_factory.mktemp("index"), shards)
    flat = [key for keys in shards for key in keys]
    assert len(index) == len(set(flat))
    assert index.total_rows == len(flat)
    assert index.find(asked).tolist() == [flat.index(key) if key in flat else -1 for key in asked]
    assert index.first_rows().tolist() == sorted(flat.index(key) for key in set(flat))


@given(st.lists(st.binary(min_size=16, max_size=16)))
def test_keys_are_the_hashes_as_numbers(raw: list[bytes]) -> None:
    keys = [value.hex() for value in raw]
    expected = [[int(key[:16], 16), int(key[16:], 16)] for key in keys]
    assert pack_hashes("".join(keys).encode()).tolist() == expected
    table = pa.table({"example_hash": pa.chunked_array([keys, keys[::-1]], type=pa.string())})
    assert pack_column(table.column(0)).tolist() == expected + expected[::-1]


@pytest.mark.parametrize("key", ["", "A" * 32, "0" * 31, "g" * 32, "é" + "0" * 30, "0" * 64, " " + "0" * 31])
def test_what_is_no_hash_is_not_found_and_not_taken(tmp_path: Path, key: str) -> None:
    index = make_index(tmp_path, [["0" * 32]])
    assert index.find([key, "0" * 32]).tolist() == [-1, 0]
    with pytest.raises(ValueError, match="key is not 32"):
        pack_column(pa.chunked_array([[key]]))


def test_a_run_is_found_where_it_is_likely_and_where_it_is_not(tmp_path: Path) -> None:
    keys = [f"{number:032x}" for number in (5, 3, 9, 1, 7, 2)]
    index = make_index(tmp_path, [keys[:4], keys[4:]])
    for likely in range(-1, 9):
        assert index.find(keys[2:5], likely=likely).tolist() == [2, 3, 4]
        assert index.find([keys[2], "x" * 32], likely=likely).tolist() == [2, -1]
        assert index.find([keys[5], keys[0]], likely=likely).tolist() == [5, 0]
        assert index.find([], likely=likely).tolist() == []
    twice = make_index(tmp_path / "twice", [keys[:2], keys[:2]])
    assert twice.find(keys[:2], likely=2).tolist() == [0, 1]


def test_memory_for_row_groups_is_bounded(tmp_path: Path) -> None:
    fill(tmp_path, range(40), shard_rows=4)
    kind = ShardKind(kind="weights", fingerprint=RECIPE.fingerprint)
    index = ShardIndex(tmp_path / "data", kind, weights_schema((0,), include_text=False), cache_bytes=1)
    for group in range(10):
        index.block(group)
    assert len(index._blocks) == 1
    assert len(index._metadata) <= 8


def test_places_give_each_row_once(tmp_path: Path) -> None:
    fill(tmp_path, range(40), shard_rows=8)
    index = ShardIndex(tmp_path / "data", ShardKind(kind="weights", fingerprint=RECIPE.fingerprint))
    rows = np.random.default_rng(0).permutation(40)[:17]
    met = {int(i): (group, int(p)) for group, at, places in index.places(rows) for i, p in zip(at, places, strict=True)}
    assert met == {i: (int(row) // 8, int(row) % 8) for i, row in enumerate(rows)}


@given(st.lists(st.lists(hashes, max_size=5), min_size=1, max_size=3), hashes, st.integers(1, 32))
@settings(deadline=None, max_examples=50)
def test_a_prefix_finds_what_begins_so(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[str]], wanted: str, digits: int
) -> None:
    index = make_index(tmp_path_factory.mktemp("index"), shards)
    flat = [key for keys in shards for key in keys]
    first = [row for row, key in enumerate(flat) if key not in flat[:row]]
    expected = [row for row in first if flat[row].startswith(wanted[:digits])]
    assert index.find_prefix(wanted[:digits]).tolist() == expected
