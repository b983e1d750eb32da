"""The row file: the same rows as the shards give, in any order, made once, and never believed when damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.weights_cache.samples import LAYERS, RECIPE, content, fill, make_row
from twdpo.errors import CacheCorrupt, MissingRows, StorageError
from twdpo.weights_cache import CacheWriter, WeightsCache
from twdpo.weights_cache.shards import list_shards

ROOT = Path(__file__).resolve().parents[2]
HASHES = [make_row(number).example_hash for number in range(30)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "cache", range(30), shard_rows=8, text=True)
    shard = list_shards(tmp_path / "cache" / "data")[0]
    (tmp_path / "cache" / "data" / "part-99990101T000000000000Z-copy.parquet").write_bytes(shard.read_bytes())
    return tmp_path / "cache"


def row_files(folder: Path) -> list[Path]:
    return sorted((folder / ".rows").iterdir())


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("layers", [LAYERS, (3,), (29, 0)])
def test_gives_what_the_shards_give(folder: Path, layers: tuple[int, ...], text: bool) -> None:
    asked = [HASHES[number] for number in np.random.default_rng(0).permutation(30).tolist() * 2]
    with WeightsCache.open(folder, layers=layers, text=text) as cache:
        by_group = cache.fetch(asked)
        cache.prepare_shuffled()
        by_row = cache.fetch(asked)
        assert cache.fetch([]) == []
        assert [content(row) for row in cache.join(HASHES)] == [content(row) for row in cache.fetch(HASHES)]
    assert [content(row) for row in by_row] == [content(row) for row in by_group]
    assert all((row.prompt is not None) == text for row in by_row)
    assert all(list(row.chosen.weights) == list(layers) for row in by_row)
    assert all(side.weights[layers[0]].dtype == np.float32 for row in by_row for side in (row.chosen, row.rejected))


def test_figures_that_are_not_there_stay_nan(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled()
        assert np.isnan(cache.get(HASHES[4]).order_agreement_rejected)


def test_rows_are_their_readers_own(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled()
        cache.get(HASHES[2]).chosen.weights[29][:] = -1
        assert cache.get(HASHES[2]).chosen.weights[29].min() >= 0


def test_it_is_made_once_and_again_when_the_shards_changed(folder: Path) -> None:
    for _ in range(2):
        with WeightsCache.open(folder) as cache:
            cache.prepare_shuffled()
            cache.prepare_shuffled()
        (first,) = row_files(folder)
        made = first.stat().st_mtime_ns
    assert first.stat().st_mtime_ns == made
    with CacheWriter.open(folder, RECIPE, include_text=True) as writer:
        writer.add(make_row(40, text=True))
    (folder / ".rows" / ".tmp-1-dead").touch()
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled()
        assert content(cache.get(make_row(40).example_hash)) == content(make_row(40, text=True))
        with pytest.raises(MissingRows):
            cache.fetch([make_row(41).example_hash])
    (second,) = row_files(folder)
    assert second != first


def test_each_choice_of_layers_has_its_own(folder: Path) -> None:
    for layers in ((29,), (0, 3)):
        with WeightsCache.open(folder, layers=layers) as cache:
            cache.prepare_shuffled()
    assert len(row_files(folder)) == 2


def test_a_shard_that_changed_under_an_undigested_name_is_noticed(tmp_path: Path) -> None:
    for name, numbers in (("one", range(4)), ("two", range(4, 8))):
        fill(tmp_path / name, numbers, shard_rows=4)
        (shard,) = list_shards(tmp_path / name / "data")
        shard.rename(shard.with_name("rows.parquet"))
    with WeightsCache.open(tmp_path / "one") as cache:
        cache.prepare_shuffled()
    shutil.copy(tmp_path / "two" / "data" / "rows.parquet", tmp_path / "one" / "data" / "rows.parquet")
    with WeightsCache.open(tmp_path / "one") as cache:
        cache.prepare_shuffled()
        assert content(cache.get(HASHES[5])) == content(make_row(5))


def test_damage_is_an_error_or_is_mended_and_never_a_wrong_weight(folder: Path) -> None:
    """Every byte of a record's content counts; a file whose footer is damaged is made again."""
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled()
        expected = [content(row) for row in cache.fetch(HASHES)]
    (path,) = row_files(folder)
    sound = path.read_bytes()
    rng = np.random.default_rng(7)
    refused = mended = 0
    for attempt in range(300):
        damaged = bytearray(sound)
        if attempt % 5 == 0:
            del damaged[int(rng.integers(len(sound))) :]
        elif attempt % 5 == 1:
            damaged[len(sound) - 1 - int(rng.integers(300))] ^= 1 << int(rng.integers(8))
        else:
            damaged[int(rng.integers(len(sound)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with WeightsCache.open(folder) as cache:
            cache.prepare_shuffled()
            mended += path.read_bytes() == sound
            found: list[object] = []
            with suppress(CacheCorrupt):
                found = [content(row) for row in cache.fetch(HASHES)]
            assert found in ([], expected)
            refused += not found
    assert refused > 100
    assert mended > 50


def test_a_damaged_record_says_what_to_do(folder: Path) -> None:
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled()
        (path,) = row_files(folder)
        content = bytearray(path.read_bytes())
        content[100] ^= 1
        path.write_bytes(content)
        with pytest.raises(CacheCorrupt, match="rows-.* is damaged: .* delete that file, it is made again"):
            cache.fetch(HASHES)


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int, _content: bytes) -> int:
        raise OSError(28, "No space left on device")

    with WeightsCache.open(folder) as cache:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="the disk is full"):
            cache.prepare_shuffled()
        monkeypatch.undo()
        assert row_files(folder) == []
        assert content(cache.get(HASHES[1])) == content(make_row(1, text=True))


def test_it_is_made_where_the_order_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "cache", range(200), shard_rows=10)
    ordered = [make_row(number).example_hash for number in range(220)]
    shuffled = [ordered[number] for number in np.random.default_rng(3).permutation(220)]
    with WeightsCache.open(tmp_path / "cache") as cache:
        assert not cache.prepare_for(ordered, 20)
        assert not cache.prepare_for([], 20)
        assert not cache.prepare_for(shuffled[:30], 20)
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
            assert not cache.prepare_for(shuffled, 20)
        assert cache.prepare_for(shuffled, 20)
        known = [key for key in shuffled if key in cache]
        assert [row.example_hash for row in cache.fetch(known)] == known


def test_it_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    with WeightsCache.open(folder) as cache:
        cache.prepare_shuffled(tmp_path / "scratch" / "rows")
        assert content(cache.get(HASHES[1])) == content(make_row(1, text=True))
    assert not (folder / ".rows").exists()
    assert len(list((tmp_path / "scratch" / "rows").iterdir())) == 1


RACE = """
import sys
from pathlib import Path
from twdpo.weights_cache import WeightsCache
with WeightsCache.open(Path(sys.argv[1])) as cache:
    sys.stdin.readline()
    cache.prepare_shuffled()
    keys = [row.example_hash for row in cache.rows()]
    print(len(cache.fetch(keys[::-1])))
"""


def test_processes_that_start_together_make_it_once(folder: Path) -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    done = [worker.communicate("go\n") for worker in workers]
    assert [output for output, _ in done] == ["30\n"] * 3, done
    assert len(row_files(folder)) == 1


def test_an_empty_cache_has_an_empty_one(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path, replace(RECIPE, dtype="float16")):
        pass
    with WeightsCache.open(tmp_path) as cache:
        cache.prepare_shuffled()
        assert cache.fetch([]) == []
