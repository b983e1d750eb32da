"""Parquet, Arrow and Feather: nested columns come out right, and memory does not grow with the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from twdpo.errors import DataError
from twdpo.preferences import Pair, parse_row
from twdpo.preferences.hub import quiet
from twdpo.preferences.rows import BATCH
from twdpo.preferences.tables import ArrowRows, DatasetRows, ParquetRows, TableRows

Writer = Callable[[pa.Table, Path], None]


def write_parquet(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def write_feather(table: pa.Table, path: Path) -> None:
    feather.write_feather(table, path)


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


KINDS = [
    (ParquetRows, write_parquet),
    (ArrowRows, write_feather),
    (ArrowRows, write_stream),
    (ArrowRows, write_file),
]


def rows_of(count: int) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"q{i}" if i % 7 != 6 else None,
            "chosen": [{"content": f"q{i}", "role": "user"}, {"content": f"good {i}", "role": "assistant"}],
            "rejected": [{"content": f"q{i}", "role": "user"}, {"content": f"bad {i}", "role": "assistant"}],
            "score": i,
        }
        for i in range(count)
    ]


@pytest.mark.parametrize(("reader", "write"), KINDS)
@pytest.mark.parametrize("count", [0, 1, BATCH + 1])
def test_rows_come_as_they_were_written(
    tmp_path: Path, reader: Callable[[Path], TableRows], write: Writer, count: int
) -> None:
    schema = pa.Table.from_pylist(rows_of(1)).schema
    write(pa.Table.from_pylist(rows_of(count), schema=schema), tmp_path / "pairs")
    rows = reader(tmp_path / "pairs")
    assert rows.columns == ("prompt", "chosen", "rejected", "score")
    assert rows.count() == count
    expected = [{key: value for key, value in row.items() if key != "score"} for row in rows_of(count)]
    assert list(rows) == expected
    assert list(rows) == expected  # a second time


@pytest.mark.parametrize(("reader", "write"), KINDS)
def test_broken_files(tmp_path: Path, reader: Callable[[Path], TableRows], write: Writer) -> None:
    whole = tmp_path / "whole"
    write(pa.Table.from_pylist(rows_of(500)), whole)
    content = whole.read_bytes()
    for broken in (b"no table at all", content[: len(content) // 2], content[:10]):
        path = tmp_path / "broken"
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"cannot read .*broken: it is broken") as caught:
            list(reader(path))
        assert "\n" not in str(caught.value)


def test_a_page_that_is_broken_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    write_parquet(pa.Table.from_pylist(rows_of(500)), path)
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = os.urandom(len(content) // 2 - 4)
    path.write_bytes(content)
    with pytest.raises(DataError, match="it is broken"):
        list(ParquetRows(path))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    texts = [os.urandom(500).hex() for _ in range(20_000)]
    pq.write_table(pa.table({"prompt": texts, "chosen": texts[::-1], "rejected": texts}), path, row_group_size=20_000)
    size, before, peak = path.stat().st_size, pa.total_allocated_bytes(), 0
    for i, _ in enumerate(ParquetRows(path)):
        if i % 100 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert size > 20_000_000
    assert peak < size / 3


def test_messages_of_mixed_shapes_which_datasets_stores_as_json(tmp_path: Path) -> None:
    features = datasets.Features(
        {"prompt": datasets.Value("string"), **dict.fromkeys(("chosen", "rejected"), datasets.List(datasets.Json()))}
    )
    parts = [{"type": "text", "text": "Fo"}, {"type": "text", "text": "ur."}]
    row = {
        "prompt": "2+2",
        "chosen": [{"role": "assistant", "content": parts}],
        "rejected": [{"role": "assistant", "content": "Five."}],
    }
    with quiet():
        held = datasets.Dataset.from_dict({key: [value] for key, value in row.items()}, features=features)
        held.to_parquet(tmp_path / "pairs.parquet")
    for rows in (ParquetRows(tmp_path / "pairs.parquet"), DatasetRows(held, "here")):
        (pair,) = (parse_row(row, 0) for row in rows)
        assert isinstance(pair, Pair)
        assert (pair.chosen, pair.rejected) == ("Four.", "Five.")


def test_a_struct_of_lists_as_older_datasets_stored_messages(tmp_path: Path) -> None:
    side = pa.struct([("role", pa.list_(pa.string())), ("content", pa.list_(pa.string()))])
    schema = pa.schema([("chosen", side), ("rejected", side)])
    row = {
        name: {"role": ["user", "assistant"], "content": ["q", answer]}
        for name, answer in (("chosen", "a"), ("rejected", "b"))
    }
    write_parquet(pa.Table.from_pylist([row], schema=schema), tmp_path / "pairs.parquet")
    (pair,) = (parse_row(row, 0) for row in ParquetRows(tmp_path / "pairs.parquet"))
    assert isinstance(pair, Pair)
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("q", "a", "b")
