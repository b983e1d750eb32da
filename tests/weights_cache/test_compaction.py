"""Compacting: few shards of the same rows in the same order, to the bit, whatever stops it or goes on meanwhile."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.weights_cache.samples import RECIPE, content, fill, make_row
from twdpo.errors import CacheCorrupt, CacheError, UsageError
from twdpo.weights_cache import CacheWriter, Manifest, WeightsCache, verify
from twdpo.weights_cache.compaction import compact
from twdpo.weights_cache.compaction_plan import stamp_of, stamp_text
from twdpo.weights_cache.mantissa import is_rounded
from twdpo.weights_cache.schema import read_shard_metadata, shard_metadata, weights_schema
from twdpo.weights_cache.shard_file import ShardFile
from twdpo.weights_cache.shards import ROW_GROUP_ROWS, write_shard

ROOT = Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "cache_schema_1"
MIDNIGHT = stamp_of("part-20260101T000000000000Z-0123456789abcdef.parquet") or 0
METADATA = shard_metadata(kind="weights", fingerprint=RECIPE.fingerprint)

# Copies the cache SOURCE to TARGET/1, TARGET/2, ... and has a process die inside its n-th call that changes the disk,
# a write half done, until one gets through. Of writes, which are many and alike, every sixtieth counts.
KILLED_IN_CALL = """
import itertools, os, shutil, signal, sys
from itertools import pairwise
from pathlib import Path
from twdpo.weights_cache.compaction import compact
calls = 0
def dying(real, at, halfway, step=1):
    def call(*arguments, **options):
        global calls
        calls += 1 / step
        if calls >= at:
            halfway(*arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    return call
for at in itertools.count(1):
    folder = Path(sys.argv[2]) / str(at)
    shutil.copytree(sys.argv[1], folder)
    child = os.fork()
    if child == 0:
        write = os.write
        os.write = dying(write, at, lambda descriptor, content: write(descriptor, content[: len(content) // 2]), 60)
        os.fsync = dying(os.fsync, at, lambda *_: None)
        os.replace = dying(os.replace, at, lambda *_: None)
        os.unlink = dying(os.unlink, at, lambda *_: None)
        compact(folder, shard_bytes=int(sys.argv[3]))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:
        sys.exit(status)
"""

LIMITED = """
import resource, sys
from twdpo.errors import StorageError
from twdpo.weights_cache.compaction import compact
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    compact(sys.argv[1])
except StorageError as error:
    sys.exit(str(error))
"""

PEAK = """
import sys
from twdpo.weights_cache.compaction import compact
compact(sys.argv[1], shard_bytes=int(sys.argv[2]))
# Not getrusage, which also counts what the process held that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def table(keys: Sequence[int], *, tag: int = 0, tokens: int = 2) -> pa.Table:
    """Rows of the keys; `tag` goes into their values, so that two rows of one hash can be told apart."""
    schema = weights_schema(RECIPE.layers, include_text=False)
    columns: dict[str, Any] = {}
    for field in schema:
        if pa.types.is_list(field.type):
            offsets = pa.array(np.arange(len(keys) + 1, dtype=np.int32) * tokens)
            one = np.arange(tokens, dtype=np.int32)
            if pa.types.is_floating(field.type.value_type):
                one = (1 + (one - (tokens - 1) / 2) * tag / 128).astype(np.float32)
            values = np.tile(one, len(keys))
            columns[field.name] = pa.ListArray.from_arrays(offsets, pa.array(values), type=field.type)
        elif pa.types.is_floating(field.type):
            columns[field.name] = pa.array(np.full(len(keys), np.nan, dtype=np.float32))
        elif pa.types.is_boolean(field.type):
            columns[field.name] = pa.array([bool(tag % 2)] * len(keys))
        else:
            columns[field.name] = pa.array([f"{key:032x}" for key in keys])
    return pa.Table.from_pydict(columns, schema=schema)


def add_shard(folder: Path, rows: pa.Table, stamp: int, name: str | None = None) -> Path:
    """A shard of `rows` whose name says `stamp`, or `name`."""
    path = write_shard(folder / "data", rows, METADATA)
    digest = path.name.rpartition("-")[2]
    return path.rename(path.with_name(name or f"part-{stamp_text(stamp)}-{digest}"))


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A cache without rows."""
    return begin(tmp_path / "cache")


def begin(folder: Path) -> Path:
    with CacheWriter.open(folder, RECIPE):
        pass
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bits(column: pa.ChunkedArray) -> list[Any]:
    """A column's values, floats as the integers of their bits."""
    return [value for chunk in column.chunks for value in _bits(chunk)]


def _bits(array: pa.Array) -> list[Any]:
    if pa.types.is_list(array.type):
        values = _bits(array.values)
        bounds = array.offsets.to_pylist()
        found = [values[first:last] for first, last in pairwise(bounds)]
        return [each if valid else None for each, valid in zip(found, array.is_valid().to_pylist(), strict=True)]
    width = {pa.float16(): pa.int16(), pa.float32(): pa.int32(), pa.float64(): pa.int64()}.get(array.type)
    found: list[Any] = (array.view(width) if width else array).to_pylist()
    return found


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows that count, in cache order, every column of every shard, to the bit."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / "data").glob("*.parquet"), key=lambda path: path.name):
        whole = pq.read_table(path)
        columns = {name: bits(whole.column(name)) for name in whole.column_names}
        for position, key in enumerate(columns["example_hash"]):
            row = {name: values[position] for name, values in columns.items() if values[position] is not None}
            found.setdefault(key, row)
    return list(found.values())


def shard_rows(folder: Path) -> list[int]:
    return [pq.read_metadata(folder / "data" / name).num_rows for name in names(folder)]


def test_many_small_shards_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    written = fill(folder, range(41), shard_rows=2, text=True)
    before, size = rows_of(folder), sum(path.stat().st_size for path in (folder / "data").iterdir())
    steps: list[tuple[int, int]] = []
    result = compact(folder, progress=lambda done, total: steps.append((done, total)))
    (name,) = names(folder)
    assert (result.shards_before, result.shards_after, result.rows, result.duplicates) == (21, 1, 41, 0)
    assert (result.bytes_before, result.bytes_after) == (size, (folder / "data" / name).stat().st_size)
    assert steps == [(41, 41)]
    assert rows_of(folder) == before
    with WeightsCache.open(folder) as cache:
        assert [content(row) for row in cache.rows()] == [content(row) for row in written]
    assert verify(folder).ok
    assert Manifest.load(folder).counts == {"pairs": 41, "rejected": 0, "shards": 1, "truncated": 14}


def test_twice_rewrites_nothing(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(9), shard_rows=2)
    compact(tmp_path / "cache")
    inodes = {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")}
    result = compact(tmp_path / "cache")
    assert (result.shards_before, result.shards_after) == (1, 1)
    assert result.bytes_before == result.bytes_after > 0
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").rglob("*")} == inodes


def test_a_new_shard_is_what_write_shard_writes(tmp_path: Path) -> None:
    rows = table(range(1100))
    known = write_shard(tmp_path, rows, METADATA)
    with ShardFile(tmp_path, rows.schema, METADATA) as shard:
        for start in range(0, 1100, ROW_GROUP_ROWS):
            shard.write(rows.slice(start, ROW_GROUP_ROWS))
        path = shard.publish(stamp_text(MIDNIGHT))
    assert path.read_bytes() == known.read_bytes()
    assert path.name.rpartition("-")[2] == known.name.rpartition("-")[2]


def test_the_first_row_of_a_hash_counts_also_where_the_values_differ(empty: Path) -> None:
    add_shard(empty, table([1, 2, 3], tag=1), MIDNIGHT)
    add_shard(empty, table([3, 4, 1], tag=2), MIDNIGHT + 10**6)
    add_shard(empty, table([4, 2], tag=3), MIDNIGHT + 2 * 10**6)
    before = rows_of(empty)
    result = compact(empty)
    assert (result.rows, result.duplicates) == (4, 4)
    assert shard_rows(empty) == [4]
    assert rows_of(empty) == before
    assert Manifest.load(empty).counts["truncated"] == 3


def test_shards_are_cut_at_their_size_in_whole_row_groups(empty: Path) -> None:
    for number in range(20):
        add_shard(empty, table(range(number * 300, number * 300 + 300)), MIDNIGHT + number)
    before = rows_of(empty)
    compact(empty, shard_bytes=16_000)
    assert rows_of(empty) == before
    footers = [pq.read_metadata(empty / "data" / name) for name in names(empty)]
    groups = [[footer.row_group(group).num_rows for group in range(footer.num_row_groups)] for footer in footers]
    assert len(groups) > 1
    assert [rows for part in groups for rows in part] == [512] * 11 + [368]
    # Each has room for all that may come of it.
    first, second = (stamp_of(name) or 0 for name in names(empty)[:2])
    assert second - first == len(groups[0])
    assert verify(empty).ok


def test_a_large_shard_with_duplicates_may_become_several(empty: Path) -> None:
    add_shard(empty, table([*range(1100), 7], tag=1), MIDNIGHT)
    before = rows_of(empty)
    compact(empty, shard_bytes=1)
    assert shard_rows(empty) == [512, 512, 76]
    assert rows_of(empty) == before


def test_large_shards_without_duplicates_stay_and_keep_their_place(empty: Path) -> None:
    add_shard(empty, table([1, 2]), MIDNIGHT)
    add_shard(empty, table([3]), MIDNIGHT + 10)
    large = add_shard(empty, table(range(100, 1100), tokens=9), MIDNIGHT + 20)
    add_shard(empty, table([4, 100]), MIDNIGHT + 21)
    add_shard(empty, table([5]), MIDNIGHT + 22)
    with_duplicate = add_shard(empty, table([*range(2100, 3100), 1], tokens=9), MIDNIGHT + 30)
    before = rows_of(empty)
    result = compact(empty, shard_bytes=large.stat().st_size * 2)
    assert (result.shards_before, result.shards_after, result.duplicates) == (6, 3, 2)
    assert shard_rows(empty) == [3, 1000, 1002]
    assert names(empty)[1] == large.name
    assert not with_duplicate.exists()
    assert rows_of(empty) == before


def test_where_no_stamp_is_free_the_neighbour_is_written_again(empty: Path) -> None:
    add_shard(empty, table(range(3000), tokens=9), MIDNIGHT)
    # These make two shards, of 24 row groups in all, and there are two microseconds for them.
    for number in range(24):
        add_shard(empty, table(range(10_000 + number * 512, 10_000 + number * 512 + 512)), MIDNIGHT + 1)
    add_shard(empty, table(range(4000, 7000), tokens=9), MIDNIGHT + 3)
    before = rows_of(empty)
    compact(empty, shard_bytes=24_000)
    assert rows_of(empty) == before
    assert shard_rows(empty)[0] == 3000
    assert 2 < len(names(empty)) < 6
    assert verify(empty).ok


def test_renamed_shards_get_their_digest_back_in_their_place(empty: Path) -> None:
    large = table(range(100, 1100), tokens=9)
    add_shard(empty, large, 0, "000.parquet")
    add_shard(empty, table([1, 2]), MIDNIGHT)
    add_shard(empty, table([3, 4]), 0, "train-00000-of-00001.parquet")
    # The date in its name is none.
    add_shard(empty, table([5]), 0, "part-20269999T000000000000Z-0123456789abcde0.parquet.parquet")
    before = rows_of(empty)
    compact(empty, shard_bytes=10_000)
    assert all(stamp_of(name) is not None for name in names(empty))
    assert rows_of(empty) == before
    assert verify(empty).ok


def test_unknown_columns_are_kept_to_the_bit(empty: Path) -> None:
    odd = np.array([0x7FC00001, 0xFFC12345, 0x80000000], dtype=np.uint32).view(np.float32)
    doubles = np.array([0x7FF8000000000001, 1, 0x8000000000000000], dtype=np.uint64).view(np.float64)
    first = table([1, 2, 3]).append_column("note", pa.array(["a", None, "\U0001f600"]))
    first = first.append_column(pa.field("odd", pa.float32(), nullable=False), pa.array(odd))
    first = first.append_column("nested", pa.array([[1.5, None], None, []], type=pa.list_(pa.float64())))
    second = table([4, 5, 1], tag=1).append_column("note", pa.array(["b", "c", "dropped"]))
    second = second.append_column("doubles", pa.array(doubles))
    second = second.append_column("labels", pa.array(["x", "y", "x"]).dictionary_encode())
    second = second.append_column("tiny", pa.array([-128, 0, 127], type=pa.int8()))
    third = table([6], tag=2).append_column("labels", pa.array(["z"]).dictionary_encode())
    third = third.append_column("pairs", pa.array([{"a": 1, "b": [b"\x00\xff"]}]))
    for number, rows in enumerate((first, second, third)):
        add_shard(empty, rows, MIDNIGHT + number)
    before = rows_of(empty)
    assert len(before[0]) > len(table([]).column_names)
    compact(empty)
    assert shard_rows(empty) == [6]
    assert rows_of(empty) == before
    whole = pq.read_table(empty / "data" / names(empty)[0])
    assert whole.schema.field("labels").type == second.schema.field("labels").type
    assert whole.schema.field("odd").nullable
    assert not whole.schema.field("judge_prob_cr").nullable
    assert verify(empty).ok


def test_columns_of_one_name_and_two_types_are_never_joined(empty: Path) -> None:
    for number, extra in enumerate((pa.array([7]), pa.array([8]), pa.array(["seven"]), pa.array(["eight"]))):
        add_shard(empty, table([number]).append_column("extra", extra), MIDNIGHT + number)
    before = rows_of(empty)
    compact(empty)
    assert shard_rows(empty) == [2, 2]
    assert rows_of(empty) == before
    after = names(empty)
    compact(empty)
    assert names(empty) == after


def test_shards_of_another_tool_without_not_null_are_taken_in(empty: Path) -> None:
    rows = table([1, 2])
    plain = {}
    for field in rows.schema:
        kind = pa.list_(pa.field("item", field.type.value_type)) if pa.types.is_list(field.type) else field.type
        plain[field.name] = rows.column(field.name).cast(kind)
    pq.write_table(pa.table(plain).replace_schema_metadata(METADATA), empty / "data" / "x.parquet")
    add_shard(empty, table([3]), MIDNIGHT)
    before = rows_of(empty)
    compact(empty)
    assert shard_rows(empty) == [3]
    assert rows_of(empty) == before
    assert verify(empty).ok


def test_an_empty_entry_or_a_column_of_another_type_is_damage(empty: Path) -> None:
    rows = table([1])
    for name, column in (
        ("chosen_weights_0", pa.array([None], type=pa.list_(pa.float32()))),
        ("chosen_weights_0", pa.array([[None, 1.0]], type=pa.list_(pa.float32()))),
        ("judge_prob_cr", pa.array([0.5], type=pa.float64())),
    ):
        bad = rows.set_column(rows.schema.get_field_index(name), name, column)
        pq.write_table(bad.replace_schema_metadata(METADATA), empty / "data" / "x.parquet")
        before = files(empty)
        with pytest.raises(CacheCorrupt, match=f"x.parquet is damaged: column {name}"):
            compact(empty)
        after = files(empty)
        after["manifest.json"] = before["manifest.json"]
        assert after == before


def test_schema_1_keeps_its_bits_alone_and_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(FIXTURE, folder)
    manifest = Manifest.load(folder)
    with CacheWriter.open(folder, manifest.recipe, include_text=manifest.include_text) as writer:
        writer.add(make_row(100, text=manifest.include_text, layers=manifest.recipe.layers))
    before = rows_of(folder)
    assert len(names(folder)) == 3
    compact(folder)
    (name,) = names(folder)
    whole = pq.ParquetFile(folder / "data" / name)
    said = read_shard_metadata(whole.metadata.metadata)
    assert (said["kind"], said["fingerprint"]) == ("weights", manifest.fingerprint)
    assert (said["schema_version"], said["mantissa_bits"]) == ("2", "12")
    assert rows_of(folder) == before
    weights = whole.read().column(f"chosen_weights_{manifest.recipe.layers[-1]}").combine_chunks().values.to_numpy()
    assert not is_rounded(weights)
    assert verify(folder).ok


def test_an_old_cache_says_that_old_programs_cannot_read_it_any_more(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path / "cache")
    assert Manifest.load(tmp_path / "cache").schema_version == 1
    before = rows_of(tmp_path / "cache")
    compact(tmp_path / "cache")
    assert Manifest.load(tmp_path / "cache").schema_version == 2
    assert rows_of(tmp_path / "cache") == before
    assert verify(tmp_path / "cache").ok


@pytest.mark.parametrize("renamed", [False, True])
def test_a_damaged_shard_stops_it_before_anything_changes(empty: Path, renamed: bool) -> None:
    for number in range(3):
        # With a duplicate each, so that all are to be written again.
        rows = table([*range(number * 600, number * 600 + 600), number * 600])
        add_shard(empty, rows, MIDNIGHT + number, f"{number}.parquet" if renamed else None)
    for path in sorted((empty / "data").iterdir()):
        whole = path.read_bytes()
        at = pq.read_metadata(path).row_group(0).column(3).data_page_offset + 40
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        before = files(empty)
        with pytest.raises(CacheCorrupt, match=path.name):
            compact(empty, shard_bytes=1)
        assert files(empty) == before
        path.write_bytes(whole)


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_killed_inside_every_call(tmp_path: Path, shard_bytes: int) -> None:
    source = begin(tmp_path / "cache")
    rng = np.random.default_rng(0)
    for number, count in enumerate((100, 700, 2)):
        add_shard(source, table(rng.integers(0, 1500, count).tolist(), tag=number), MIDNIGHT + number)
    add_shard(source, table([*range(2000, 2600), 2000], tag=9), MIDNIGHT + 9)
    before = rows_of(source)
    target = tmp_path / "killed"
    target.mkdir()
    killer = subprocess.run([sys.executable, "-c", KILLED_IN_CALL, source, target, str(shard_bytes)], cwd=ROOT)
    assert killer.returncode == 0
    *killed, undisturbed = sorted(target.iterdir(), key=lambda path: int(path.name))
    assert len(killed) > 10
    assert any(list(folder.rglob(".tmp-*")) for folder in killed)
    assert any(len(names(folder)) > 4 for folder in killed)
    for folder in (*killed, undisturbed):
        assert rows_of(folder) == before
        assert verify(folder).ok
        compact(folder, shard_bytes=shard_bytes)
        assert rows_of(folder) == before
        assert sum(shard_rows(folder)) == len(before)
        assert verify(folder).ok
        assert not list(folder.rglob(".tmp-*"))
        assert Manifest.load(folder).counts == Manifest.load(undisturbed).counts


def test_after_a_kill_the_new_shards_come_first_and_stay(empty: Path) -> None:
    paths = [add_shard(empty, table([number], tag=number), MIDNIGHT + 9 * number) for number in range(5)]
    old = {path: path.read_bytes() for path in paths}
    compact(empty)
    (path,) = (empty / "data").iterdir()
    assert (stamp_of(path.name) or 0) < MIDNIGHT
    inode = path.stat().st_ino
    for each, whole in old.items():
        each.write_bytes(whole)
    result = compact(empty)
    assert (result.shards_before, result.duplicates) == (6, 5)
    assert names(empty) == [path.name]
    assert path.stat().st_ino == inode


def test_what_a_kill_left_may_have_the_very_name_of_a_new_shard(tmp_path: Path) -> None:
    # Right after a large shard there is no room before the small ones: the new shard has the stamp of the first, and
    # where its digest is larger it comes after it, has a duplicate, and is written again as it is.
    for tag in range(40):
        folder = begin(tmp_path / str(tag))
        large = add_shard(folder, table(range(100, 3100), tokens=9), MIDNIGHT)
        old = [add_shard(folder, table([number], tag=tag), MIDNIGHT + 1 + number) for number in (0, 1)]
        wholes = [path.read_bytes() for path in old]
        before = rows_of(folder)
        compact(folder, shard_bytes=large.stat().st_size)
        _, new = names(folder)
        for path, whole in zip(old, wholes, strict=True):
            path.write_bytes(whole)
        if old[0].name < new:
            break
    assert old[0].name < new < old[1].name
    assert compact(folder, shard_bytes=large.stat().st_size).duplicates == 2
    assert names(folder) == [large.name, new]
    assert rows_of(folder) == before


def test_shards_added_meanwhile_stay(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fill(folder, range(20), shard_rows=2)
    compact_progress: list[int] = []

    def work(done: int, total: int) -> None:
        compact_progress.append(done)
        fill(folder, range(15, 25), shard_rows=3)

    result = compact(folder, progress=work)
    assert compact_progress == [20]
    assert (result.shards_before, result.shards_after) == (10, 1)
    assert shard_rows(folder) == [20, 3, 2]
    assert Manifest.load(folder).counts["pairs"] == 25
    assert Manifest.load(folder).counts["shards"] == 3
    assert verify(folder).ok
    with WeightsCache.open(folder) as cache:
        assert [content(row) for row in cache.rows()] == [content(make_row(number)) for number in range(25)]


def test_two_at_a_time_take_turns(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fill(folder, range(20), shard_rows=2)
    results: list[Any] = []
    second = threading.Thread(target=lambda: results.append(compact(folder)))

    def work(done: int, total: int) -> None:
        second.start()
        second.join(0.3)
        assert second.is_alive()

    first = compact(folder, progress=work)
    second.join()
    assert (first.shards_before, first.shards_after) == (10, 1)
    assert (results[0].shards_before, results[0].shards_after) == (1, 1)


def test_a_reader_opened_before_says_that_its_shard_has_gone(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(8), shard_rows=2)
    with WeightsCache.open(tmp_path / "cache") as cache:
        compact(tmp_path / "cache")
        with pytest.raises(CacheError, match="has gone"):
            list(cache.rows())


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    fill(tmp_path / "cache", range(30), shard_rows=1)
    before = files(tmp_path / "cache")
    largest = max(map(len, before.values()))
    failures = 0
    for limit in (0, 3, 1_000, largest + 1, 60_000):
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, tmp_path / "cache", str(limit)], cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode:
            failures += 1
            assert done.stderr.startswith("cannot write ")
            assert len(done.stderr.splitlines()) == 1
            assert files(tmp_path / "cache") == before
    assert failures >= 4


def test_wrong_input_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no such folder"):
        compact(tmp_path / "nothing")
    with pytest.raises(UsageError, match="at least 1"):
        compact(tmp_path / "nothing", shard_bytes=0)
    with CacheWriter.open(tmp_path / "cache", RECIPE):
        pass
    (tmp_path / "cache" / "data").rmdir()
    result = compact(tmp_path / "cache")
    assert (result.shards_before, result.shards_after, result.rows) == (0, 0, 0)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    def peak(shards: int) -> int:
        folder = begin(tmp_path / str(shards))
        for number in range(shards):
            add_shard(folder, table(range(number * 512, number * 512 + 512), tokens=300), MIDNIGHT + number)
        command = [sys.executable, "-c", PEAK, folder, str(1 << 30)]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    small, large = peak(10), peak(80)
    assert large < small + 30 * 1024


LAYOUTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 40), max_size=12),
        st.integers(0, 6),
        st.sampled_from([None, None, None, None, "a{}.parquet", "z{}.parquet"]),
        st.sampled_from(["", "", "", "extra", "other"]),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=LAYOUTS, shard_bytes=st.sampled_from([1, 13_400, 20_000, 1 << 28]))
def test_whatever_lies_there_the_rows_and_their_order_stay(
    tmp_path_factory: pytest.TempPathFactory, layout: list[Any], shard_bytes: int
) -> None:
    folder = begin(tmp_path_factory.mktemp("cache") / "cache")
    for number, (keys, stamp, name, extra) in enumerate(layout):
        rows = table(keys, tag=number)
        if extra:
            rows = rows.append_column(extra, pa.array([number] * len(keys) if extra == "extra" else ["x"] * len(keys)))
        add_shard(folder, rows, MIDNIGHT + stamp, name and name.format(number))
    before = rows_of(folder)
    total = sum(shard_rows(folder))
    result = compact(folder, shard_bytes=shard_bytes)
    assert rows_of(folder) == before
    assert sum(shard_rows(folder)) == result.rows == len(before)
    assert result.duplicates == total - len(before)
    assert verify(folder).ok
    after = names(folder)
    assert len(after) == result.shards_after <= len(layout)
    compact(folder, shard_bytes=shard_bytes)
    assert names(folder) == after
    shutil.rmtree(folder)
