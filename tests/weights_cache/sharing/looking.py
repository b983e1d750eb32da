"""What the tests of sharing look at: rows, files, and errors on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fixtures.hub import USER
from tests.weights_cache.samples import RECIPE, content
from twdpo.weights_cache import WeightsCache
from twdpo.weights_cache.schema import shard_metadata
from twdpo.weights_cache.shards import list_shards, write_shard

NAME = f"{USER}/weights"


def rows(folder: Path) -> dict[str, object]:
    with WeightsCache.open(folder) as opened:
        return {row.example_hash: content(row) for row in opened.rows()}


def files(folder: Path) -> dict[str, bytes]:
    """The files of a cache by name, hidden ones at its top left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_refused(answer: Any, kind: str, *parts: str) -> None:
    """An error of this kind, on one line, with these words."""
    assert kind in answer.get("kinds", ()), answer
    assert "\n" not in answer["error"]
    for part in parts:
        assert part in answer["error"]


def merge_shards(folder: Path) -> None:
    """Put all rows into one shard, as compaction does."""
    old = list_shards(folder / "data")
    table = pa.concat_tables([pq.read_table(path) for path in old])
    write_shard(folder / "data", table, shard_metadata(kind="weights", fingerprint=RECIPE.fingerprint))
    for path in old:
        path.unlink()
