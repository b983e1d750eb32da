"""verify finds what is wrong with a cache whose bytes are sound, and only that; see also test_corruption.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tests.weights_cache.samples import RECIPE, content, fill, make_row
from twdpo.errors import CacheError
from twdpo.weights_cache import CacheWriter, WeightsCache, read_rejects, verify
from twdpo.weights_cache.shards import list_shards


def test_a_sound_cache_is_reported_with_its_figures(tmp_path: Path) -> None:
    fill(tmp_path, range(10), text=True)
    with CacheWriter.open(tmp_path, RECIPE, include_text=True) as writer:
        writer.reject(3, "too long")
    first = list_shards(tmp_path / "data")[0]
    (tmp_path / "data" / "copy.parquet").write_bytes(first.read_bytes())
    (tmp_path / "data" / ".tmp-1-abc").touch()
    seen: list[tuple[int, int]] = []
    report = verify(tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert (report.shards, report.rows, report.pairs, report.duplicates) == (4, 14, 10, 4)
    assert (report.rejected, report.strays) == (1, 1)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_where_there_is_no_cache_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is no weights cache"):
        verify(tmp_path)


def test_a_damaged_manifest_is_a_problem(tmp_path: Path) -> None:
    fill(tmp_path, range(2))
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in verify(tmp_path).problems[0]


def rewrite(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the only shard's table, with sound checksums and a name that carries no digest."""
    (shard,) = list_shards(folder / "data")
    pq.write_table(change(pq.read_table(shard)), folder / "data" / "changed.parquet", write_page_checksum=True)
    shard.unlink()


def scaled(name: str, factor: float) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        column = table.column(name).combine_chunks()
        values = pc.cast(pc.multiply(pc.cast(column.values, pa.float64()), factor), column.values.type, safe=False)
        changed = pa.ListArray.from_arrays(column.offsets, values)
        return table.set_column(table.column_names.index(name), name, changed)

    return change


def replaced(name: str, values: list[object]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        column = values + table.column(name).to_pylist()[len(values) :]
        return table.set_column(
            table.column_names.index(name), pa.field(name, field.type), pa.array(column, field.type)
        )

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled("chosen_weights_3", 2.0), "chosen, layer 3: a row's mean weight is"),
        (scaled("chosen_weights_3", -1.0), "chosen, layer 3: a weight is negative"),
        (scaled("chosen_weights_3", float("inf")), "negative or not finite"),
        (scaled("chosen_weights_3", 1 + 2**-13), "a weight uses more than 11 bits"),
        (scaled("rejected_ends", 0.0), "rejected: offsets are not in order"),
        (scaled("rejected_starts", -1.0), "rejected: offsets are not in order"),
        (replaced("chosen_ends", [[1]]), "chosen: starts and ends differ in length"),
        (replaced("chosen_weights_0", [[1.0]]), "chosen, layer 0: weights and offsets differ in length"),
        (replaced("rejected_starts", [[]]), "rejected: a row has no token"),
        (replaced("judge_prob_rc", [2.0]), "judge_prob_rc lies outside"),
        (replaced("example_hash", ["0" * 32]), "has another hash"),
        (replaced("example_hash", ["x" * 32]), "a key is not 32 lower-case hex digits"),
        (replaced("rejected", ["cut"]), "has another hash"),
        (replaced("chosen_starts", [None]), "has empty entries"),
        (lambda table: table.drop(["chosen_weights_29"]), "it has no column chosen_weights_29"),
        (lambda table: table.replace_schema_metadata({}), "does not belong here"),
    ],
)
def test_every_broken_invariant_is_found(tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    fill(tmp_path, [4, 5, 6, 7], text=True)
    rewrite(tmp_path, change)
    report = verify(tmp_path)
    assert not report.ok
    assert message in report.problems[0]
    assert all("\n" not in problem for problem in report.problems)


def test_a_shard_rewritten_by_another_tool_is_sound(tmp_path: Path) -> None:
    fill(tmp_path, [4, 5, 6, 7], text=True)
    rewrite(tmp_path, lambda table: pa.Table.from_pylist(table.to_pylist()).cast(_nullable(table.schema)))
    assert verify(tmp_path).problems == ()
    assert content(WeightsCache.open(tmp_path).get(make_row(5).example_hash)) == content(make_row(5, text=True))


def _nullable(schema: pa.Schema) -> pa.Schema:
    def of(kind: pa.DataType) -> pa.DataType:
        return pa.list_(kind.value_type) if pa.types.is_list(kind) else kind

    return pa.schema([pa.field(field.name, of(field.type)) for field in schema], schema.metadata)


def test_hidden_files_are_no_part_of_a_cache(tmp_path: Path) -> None:
    """Such as what some systems put beside every file they copy."""
    rows = fill(tmp_path, range(4))
    (tmp_path / "data" / f"._{list_shards(tmp_path / 'data')[0].name}").write_bytes(b"\0\5\x16\7")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    assert verify(tmp_path).problems == ()
    assert len(list(WeightsCache.open(tmp_path).rows())) == len(rows)


def test_a_temporary_file_may_vanish_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker has finished it."""
    fill(tmp_path, range(4))
    (tmp_path / "data" / ".tmp-1-abc").touch()
    is_file = Path.is_file

    def then_gone(path: Path) -> bool:
        found = is_file(path)
        if path.name.startswith(".tmp-"):
            path.unlink()
        return found

    monkeypatch.setattr(Path, "is_file", then_gone)
    assert verify(tmp_path).ok


def test_rejects_that_cannot_be_read_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, range(4))
    with CacheWriter.open(tmp_path, RECIPE) as writer:
        writer.reject(3, "too long")
    read = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "rejects.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(CacheError, match="rejects.jsonl cannot be read: permission denied"):
        read_rejects(tmp_path)
    assert "rejects.jsonl cannot be read" in verify(tmp_path).problems[0]
