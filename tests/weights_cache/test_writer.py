"""Writing a cache: what goes in comes out, once, whatever ends the run and whoever writes beside it."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.weights_cache.samples import LAYERS, RECIPE, SOURCE, content, fill, make_row, make_side
from twdpo.errors import CacheCorrupt, CacheError, RecipeMismatch, SchemaTooNew, StorageError
from twdpo.weights_cache import CacheWriter, Manifest, SideWeights, WeightRow, WeightsCache, verify
from twdpo.weights_cache import writer as writer_module
from twdpo.weights_cache.shards import list_shards


def shards(folder: Path) -> list[Path]:
    return list_shards(folder / "data")


def written(folder: Path) -> list[object]:
    with WeightsCache.open(folder) as cache:
        return [content(row) for row in cache.rows()]


def test_a_row_written_is_the_row_read(tmp_path: Path) -> None:
    rows = fill(tmp_path, range(10))
    assert written(tmp_path) == [content(row) for row in rows]
    assert len(shards(tmp_path)) == 3
    assert verify(tmp_path).problems == ()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "data", "manifest.json"]


def test_texts_of_every_script_come_back(tmp_path: Path) -> None:
    rows = fill(tmp_path, range(6), text=True)
    assert written(tmp_path) == [content(row) for row in rows]
    assert verify(tmp_path).ok
    with WeightsCache.open(tmp_path, text=False) as cache:
        assert cache.get(rows[0].example_hash).prompt is None


def test_a_second_run_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    first = fill(tmp_path, range(5))
    with CacheWriter.open(tmp_path, RECIPE, dataset={"name": "second"}, defaults={"attn_source": "3"}) as writer:
        assert writer.done == {row.example_hash for row in first}
        assert not writer.add(make_row(2))
        assert writer.add(make_row(5))
        assert not writer.add(make_row(5))
    manifest = Manifest.load(tmp_path)
    assert manifest.sources == (SOURCE, {"name": "second"})
    assert manifest.defaults == {"attn_source": "3"}
    assert manifest.counts == {"pairs": 6, "rejected": 0, "shards": 3, "truncated": 2}
    assert written(tmp_path) == [content(make_row(number)) for number in range(6)]


def test_a_run_with_nothing_to_add_changes_no_byte_but_the_manifest(tmp_path: Path) -> None:
    fill(tmp_path, range(5))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fill(tmp_path, range(5))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_rejects_are_counted_and_known_to_the_next_run(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        assert writer.reject(7, "the chosen answer is empty", None, "demo")
        assert not writer.reject(7, "the chosen answer is empty", None, "demo")
        assert writer.rejected == {"demo:7"}
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        assert writer.rejected == {"demo:7"}
        assert not writer.reject(7, "again", None, "demo")
    assert Manifest.load(tmp_path).counts["rejected"] == 1


def test_another_recipe_is_refused_by_the_fields_that_differ(tmp_path: Path) -> None:
    fill(tmp_path, range(3))
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(RecipeMismatch) as caught:
        CacheWriter.open(tmp_path, replace(RECIPE, dtype="bfloat16", max_length=1024))
    assert str(caught.value) == (
        f"{tmp_path} was made with another recipe (dtype: float32 in the cache, bfloat16 asked for; "
        "max_length: 2048 in the cache, 1024 asked for); choose another --out, or ask for the same"
    )
    assert (tmp_path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("had", [True, False])
def test_text_is_for_all_rows_or_none(tmp_path: Path, had: bool) -> None:
    fill(tmp_path, range(2), text=had)
    with pytest.raises(CacheError, match=r"--include-text; .*or choose another --out"):
        CacheWriter.open(tmp_path, RECIPE, include_text=not had)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(CacheError, match="is not empty and holds no weights cache; choose another --out"):
        CacheWriter.open(tmp_path, RECIPE)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_folders_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(CacheError, match="a file is in the way"):
        CacheWriter.open(tmp_path / "out", RECIPE)


def test_a_newer_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("twdpo.weights_cache.schema.SCHEMA_VERSION", 3)
        newer.setattr("twdpo.weights_cache.shards.SCHEMA_VERSION", 3)
        fill(tmp_path / "shard", range(2))
    with pytest.raises(SchemaTooNew, match=r"part-.*\.parquet was written by a newer twdpo"):
        CacheWriter.open(tmp_path / "shard", RECIPE)


def test_a_shard_of_another_cache_is_named(tmp_path: Path) -> None:
    fill(tmp_path / "one", range(2))
    with CacheWriter.open(tmp_path / "two", replace(RECIPE, dtype="float16")) as writer:
        writer.add(make_row(9))
    (alien,) = shards(tmp_path / "two")
    moved = tmp_path / "one" / "data" / alien.name
    moved.write_bytes(alien.read_bytes())
    for use in (lambda: CacheWriter.open(tmp_path / "one", RECIPE), lambda: WeightsCache.open(tmp_path / "one")):
        with pytest.raises(CacheCorrupt, match=f"{alien.name} does not belong here"):
            use()
    assert alien.name in verify(tmp_path / "one").problems[0]


def test_shards_are_due_by_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with CacheWriter.open(tmp_path, RECIPE, shard_seconds=60) as writer:
        for number, now in enumerate((100.0, 159.0, 160.0, 161.0, 200.0)):
            clock[0] = now
            writer.add(make_row(number))
            assert len(shards(tmp_path)) == (now >= 160)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), SystemExit(1)])
def test_what_is_complete_is_kept_whatever_ends_the_run(tmp_path: Path, error: BaseException) -> None:
    def run() -> None:
        with CacheWriter.open(tmp_path, RECIPE) as writer:
            writer.add(make_row(0))
            raise error

    with pytest.raises(type(error)):
        run()
    assert written(tmp_path) == [content(make_row(0))]
    assert Manifest.load(tmp_path).counts["pairs"] == 1


def test_after_a_failed_write_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[Path] = []

    def full(data: Path, *_: object) -> None:
        attempts.append(data)
        raise StorageError("cannot write: the disk is full")

    def run() -> None:
        with CacheWriter.open(tmp_path, RECIPE, shard_rows=2) as writer:
            writer.add(make_row(0))
            writer.add(make_row(1))

    with monkeypatch.context() as patched:
        patched.setattr(writer_module, "write_shard", full)
        with pytest.raises(StorageError, match="disk is full"):
            run()
    assert len(attempts) == 1
    assert shards(tmp_path) == []
    fill(tmp_path, range(2))
    assert len(written(tmp_path)) == 2


NOTHING = np.empty(0, np.int32)


def bad(**changes: Any) -> WeightRow:
    return replace(make_row(1), **changes)


def bad_side(**changes: Any) -> WeightRow:
    side = make_side(np.random.default_rng(0), 4)
    return bad(chosen=replace(side, **changes))


def weights(*values: float) -> dict[int, np.ndarray[Any, Any]]:
    return {layer: np.array(values, np.float32) for layer in LAYERS}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (bad(example_hash="0" * 31), "not 32 lower-case hex digits"),
        (bad(example_hash="0" * 31 + "F"), "not 32 lower-case hex digits"),
        (bad(rejected=SideWeights(starts=NOTHING, ends=NOTHING, weights=weights())), "rejected: no token"),
        (bad_side(ends=np.arange(1, 4)), "chosen: 4 starts, 3 ends"),
        (bad_side(starts=np.array([0, 2, 1, 3])), "offsets are not in order"),
        (bad_side(starts=np.array([-1, 0, 0, 0])), "offsets are not in order"),
        (bad_side(ends=np.array([0, 0, 0, 0])), "offsets are not in order"),
        (bad_side(weights=weights(1, 1, 1)), r"\(3,\) weights for 4 tokens"),
        (bad_side(weights={0: np.ones(4)}), r"layers \[0\], the recipe has \[0, 3, 29\]"),
        (bad_side(weights=weights(1, 1, 1, np.nan)), "negative or not finite"),
        (bad_side(weights=weights(3, 1, 1, -1)), "negative or not finite"),
        (bad_side(weights=weights(1, 1, 1, 1.01)), r"the mean weight is 1\.0024999\d*, not 1"),
        (bad(judge_prob_cr=1.5), "judge_prob_cr is 1.5, outside"),
        (bad(attention_share_rejected=-0.1), "outside"),
    ],
)
def test_a_row_that_breaks_the_format_never_gets_in(tmp_path: Path, row: WeightRow, message: str) -> None:
    with CacheWriter.open(tmp_path, RECIPE) as writer, pytest.raises(ValueError, match=message):
        writer.add(row)
    assert shards(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "the text is missing"),
        ({"chosen_text": "another"}, "the text has another hash"),
        ({"rejected_text": "\ud800"}, "half a surrogate pair"),
    ],
)
def test_a_text_that_is_not_the_pairs_never_gets_in(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    row = replace(make_row(1, text=True), **changes)
    with CacheWriter.open(tmp_path, RECIPE, include_text=True) as writer, pytest.raises(ValueError, match=message):
        writer.add(row)


def test_shards_are_encoded_as_the_format_says(tmp_path: Path) -> None:
    fill(tmp_path, range(520), shard_rows=520, text=True)
    (shard,) = shards(tmp_path)
    file = pq.ParquetFile(shard)
    assert file.metadata.num_row_groups == 2
    metadata = {key: value for key, value in file.metadata.metadata.items() if key.startswith(b"twdpo.")}
    assert metadata[b"twdpo.fingerprint"] == RECIPE.fingerprint.encode()
    assert (metadata[b"twdpo.schema_version"], metadata[b"twdpo.mantissa_bits"]) == (b"2", b"11")
    assert metadata[b"twdpo.kind"] == b"weights"
    assert b"twdpo.version" in metadata
    for position in range(file.metadata.num_columns):
        column = file.metadata.row_group(0).column(position)
        assert column.compression == "ZSTD"
        assert column.dictionary_page_offset is None
        assert column.has_offset_index
        if column.physical_type == "FLOAT":
            assert "BYTE_STREAM_SPLIT" in column.encodings
        if column.physical_type == "INT32":
            assert "DELTA_BINARY_PACKED" in column.encodings


def test_a_cache_begun_by_another_worker_at_the_same_instant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks: the other one begins after the folder was looked at, or before."""
    module = writer_module
    real = module.may_begin

    def may_begin(folder: Path) -> bool:
        free = real(folder)
        monkeypatch.setattr(module, "may_begin", real)
        monkeypatch.setattr(module, "locked", lambda _folder: nullcontext())
        with CacheWriter.open(tmp_path, RECIPE) as other:
            other.add(make_row(1))
        return free

    monkeypatch.setattr(module, "may_begin", may_begin)
    monkeypatch.setattr(module, "locked", lambda _folder: nullcontext())
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        assert len(writer.done) == 1
        writer.add(make_row(2))
    with WeightsCache.open(tmp_path) as cache:
        assert len(cache) == 2
