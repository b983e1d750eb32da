"""Reading a cache: by hash, in order, by layer, and with other people's tools."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.weights_cache.samples import LAYERS, RECIPE, content, fill, make_row
from twdpo.errors import CacheCorrupt, CacheError, MissingRows
from twdpo.weights_cache import CacheWriter, SideWeights, WeightRow, WeightsCache
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.shards import list_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty pairs in shards of eight, some of them twice."""
    folder = tmp_path_factory.mktemp("cache")
    fill(folder, range(30), shard_rows=8)
    shard = list_shards(folder / "data")[0]
    # A copy of the first shard, late in cache order: what a second worker on the same pairs leaves.
    (folder / "data" / "part-99990101T000000000000Z-copy.parquet").write_bytes(shard.read_bytes())
    return folder


def test_rows_by_hash_in_the_order_asked(folder: Path) -> None:
    numbers = np.random.default_rng(0).permutation(30).tolist() * 2
    with WeightsCache.open(folder, cache_bytes=1) as cache:
        found = cache.fetch([make_row(number).example_hash for number in numbers])
    assert [content(row) for row in found] == [content(make_row(number)) for number in numbers]


def test_rows_by_number_are_those_of_a_walk_through_all(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        walked = [content(row) for row in cache.rows()]
        for numbers in ([], [0], [7, 8, 29], list(range(1, 30, 3))):
            found = list(cache.rows_at(np.array(numbers, dtype=np.int64)))
            assert [content(row) for row in found] == [walked[number] for number in numbers]
            assert all(row.chosen.starts.base is None for row in found)


def test_a_duplicate_counts_once(folder: Path) -> None:
    cache = WeightsCache.open(folder)
    assert len(cache) == 30
    assert [row.example_hash for row in cache.rows()] == [make_row(number).example_hash for number in range(30)]


def test_membership_and_missing_rows(folder: Path) -> None:
    cache = WeightsCache.open(folder)
    here, gone = make_row(3).example_hash, make_row(33).example_hash
    assert here in cache
    assert gone not in cache
    assert 3 not in cache
    assert cache.missing([here, gone, here]) == [gone]
    assert cache.fetch([]) == []
    with pytest.raises(MissingRows, match=r"1 of 2 pairs asked for have no weights .* run twdpo annotate"):
        cache.fetch([here, gone])
    with pytest.raises(MissingRows):
        cache.get(gone)


def test_a_stream_is_joined_in_its_own_order(folder: Path) -> None:
    numbers = [*range(29, -1, -1), *range(35), 3, 3]
    with WeightsCache.open(folder) as cache:
        found = list(cache.join(make_row(number).example_hash for number in numbers))
        assert list(cache.join([])) == []
    for number, row in zip(numbers, found, strict=True):
        assert (row is None) == (number >= 30)
        assert row is None or content(row) == content(make_row(number))


def test_a_join_over_many_windows_and_groups(tmp_path: Path) -> None:
    fill(tmp_path, range(1_300), shard_rows=600)
    hashes = [make_row(number).example_hash for number in range(1_400)]
    with WeightsCache.open(tmp_path, cache_bytes=1) as cache:
        joined = cache.join(hashes)
        first = next(joined)
        # Reading by hash meanwhile disturbs nothing.
        assert cache.get(hashes[1_299]).example_hash == hashes[1_299]
        rows = [first, *joined]
        # A stream that is not read to its end leaves nothing behind.
        assert next(cache.join(hashes)) is not None
    assert [row.example_hash for row in rows if row is not None] == hashes[:1_300]
    assert rows[1_300:] == [None] * 100
    assert all(content(rows[number]) == content(make_row(number)) for number in (0, 511, 512, 600, 1_299))


def test_a_stream_in_no_order_holds_few_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(200), shard_rows=2)
    hashes = [make_row(number).example_hash for number in np.random.default_rng(4).permutation(200)]
    decoded, alive = ShardIndex.decode, WeakValueDictionary[int, pa.Table]()
    most = 0

    def watched(index: ShardIndex, unit: int, span: int = 1) -> tuple[Path, pa.Table]:
        nonlocal most
        path, table = decoded(index, unit, span)
        alive[unit] = table
        most = max(most, len(alive))
        return path, table

    monkeypatch.setattr(ShardIndex, "decode", watched)
    with WeightsCache.open(tmp_path) as cache:
        assert [row.example_hash for row in cache.join(hashes) if row is not None] == hashes
    assert most <= 12


def test_rows_fetched_can_be_changed_and_do_not_change_the_cache(folder: Path) -> None:
    cache = WeightsCache.open(folder)
    key = make_row(1).example_hash
    cache.get(key).chosen.weights[0][:] = 7
    assert content(cache.get(key)) == content(make_row(1))


def test_single_layers_can_be_read(folder: Path) -> None:
    cache = WeightsCache.open(folder, layers=[29])
    assert cache.layers == (29,)
    assert set(cache.get(make_row(0).example_hash).rejected.weights) == {29}
    with pytest.raises(CacheError, match="no weights of layer 5, only of 0, 3, 29"):
        WeightsCache.open(folder, layers=[5, 29])


def test_the_index_and_the_rows_must_agree(tmp_path: Path) -> None:
    fill(tmp_path, range(4), shard_rows=4)
    cache = WeightsCache.open(tmp_path)
    (shard,) = list_shards(tmp_path / "data")
    fill(tmp_path / "other", range(4, 8), shard_rows=4)
    shard.write_bytes(list_shards(tmp_path / "other" / "data")[0].read_bytes())
    with pytest.raises(CacheCorrupt, match="not those that were written"):
        cache.get(make_row(0).example_hash)
    # Without a digest in its name, too, it must not give another pair's weights.
    bare = shard.rename(shard.with_name("bare.parquet"))
    late = WeightsCache.open(tmp_path)
    fill(tmp_path / "third", range(8, 12), shard_rows=4)
    bare.write_bytes(list_shards(tmp_path / "third" / "data")[0].read_bytes())
    with pytest.raises(CacheCorrupt, match="not where the index has it"):
        late.get(make_row(4).example_hash)


def test_a_shard_that_has_gone_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, range(4))
    cache = WeightsCache.open(tmp_path)
    list_shards(tmp_path / "data")[0].unlink()
    with pytest.raises(CacheError, match="has gone"):
        cache.get(make_row(0).example_hash)


def test_an_empty_cache_reads_as_empty(tmp_path: Path) -> None:
    fill(tmp_path, [])
    cache = WeightsCache.open(tmp_path)
    assert len(cache) == 0
    assert list(cache.rows()) == []
    assert make_row(0).example_hash not in cache


raw_weights = st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40)


@given(st.lists(st.tuples(st.binary(min_size=16, max_size=16), raw_weights, raw_weights), max_size=8), st.data())
@settings(max_examples=30, deadline=None)
def test_any_rows_come_back(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[bytes, list[float], list[float]]],
    data: st.DataObject,
) -> None:
    def side(values: list[float]) -> SideWeights:
        raw = np.array(values, np.float64)
        mean = raw.mean()
        weights = (raw / mean if mean > 0 else np.ones(len(raw))).astype(np.float32)
        starts = np.sort(data.draw(st.lists(st.integers(0, 2**31 - 2), min_size=len(raw), max_size=len(raw))))
        ends = np.minimum(starts + data.draw(st.integers(0, 50)), 2**31 - 1)
        weights_of = dict.fromkeys(LAYERS, weights)
        return SideWeights(starts=starts.astype(np.int32), ends=ends.astype(np.int32), weights=weights_of)

    rows = {
        key.hex(): WeightRow(example_hash=key.hex(), chosen=side(one), rejected=side(two)) for key, one, two in drawn
    }
    folder = tmp_path_factory.mktemp("any")
    with CacheWriter.open(folder, RECIPE, shard_rows=3) as writer:
        for row in rows.values():
            writer.add(row)
    with WeightsCache.open(folder) as cache:
        for key, row in rows.items():
            assert content(cache.get(key)) == content(row)
        assert len(cache) == len(rows)


def test_numbers_of_a_prefix_are_those_of_a_walk_through_all(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        hashes = [row.example_hash for row in cache.rows()]
        for prefix in ["", "xyz", "0" * 40, hashes[3] + "0", *"0123456789abcdef", hashes[7][:6].upper(), hashes[9]]:
            expected = [i for i, key in enumerate(hashes) if prefix and key.startswith(prefix.lower())]
            assert cache.numbers(prefix) == expected
