"""A cache of schema version 1, written by the program of that time: read, verified, gone on with."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.weights_cache.samples import RECIPE, make_row
from twdpo.errors import SchemaTooNew
from twdpo.weights_cache import SCHEMA_VERSION, CacheWriter, Manifest, WeightsCache, read_rejects, verify
from twdpo.weights_cache.mantissa import is_rounded
from twdpo.weights_cache.schema import read_shard_metadata, stored_mantissa_bits
from twdpo.weights_cache.shards import list_shards

FIXTURE = Path(__file__).parents[1] / "fixtures" / "cache_schema_1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURE, tmp_path / "cache"))


def rounded_to_13_bits(values: np.ndarray) -> np.ndarray:
    """What version 1 kept of a weight, by arithmetic of its own."""
    fraction, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.round(fraction * 2**13) / 2**13, exponent).astype(np.float32)


def test_it_is_of_version_1() -> None:
    said = read_shard_metadata(pq.read_metadata(list_shards(FIXTURE / "data")[0]).metadata)
    assert (said["schema_version"], stored_mantissa_bits(said)) == ("1", 12)
    assert Manifest.load(FIXTURE).schema_version == 1 < SCHEMA_VERSION


def test_every_row_reads_as_it_was_written() -> None:
    with WeightsCache.open(FIXTURE) as cache:
        rows = list(cache.rows())
    assert len(rows) == 6
    for number, row in enumerate(rows):
        made = make_row(number, text=True)
        assert (row.example_hash, row.prompt, row.chosen_text) == (made.example_hash, made.prompt, made.chosen_text)
        for side in ("chosen", "rejected"):
            assert np.array_equal(row.side(side).starts, made.side(side).starts)
            for layer, weights in made.side(side).weights.items():
                assert np.array_equal(row.side(side).weights[layer], rounded_to_13_bits(weights))
    assert any(not is_rounded(row.chosen.weights[29]) for row in rows)
    assert [reject.row for reject in read_rejects(FIXTURE)] == [6]
    assert verify(FIXTURE).problems == ()


def test_going_on_with_it_makes_it_one_of_this_version(old: Path) -> None:
    with CacheWriter.open(old, RECIPE, include_text=True) as writer:
        assert len(writer.done) == 6
        assert not writer.add(make_row(2, text=True))
        assert writer.add(make_row(7, text=True))
    assert Manifest.load(old).schema_version == SCHEMA_VERSION
    assert verify(old).problems == ()
    with WeightsCache.open(old) as cache:
        assert len(cache) == 7
        assert is_rounded(cache.get(make_row(7).example_hash).chosen.weights[29])


def test_a_shard_that_breaks_its_own_promise_is_found(old: Path) -> None:
    (first, *_) = list_shards(old / "data")
    table = pq.read_table(first)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"twdpo.mantissa_bits": b"11"})
    pq.write_table(table, old / "data" / "promise.parquet", write_page_checksum=True)
    assert any("more than 11 bits" in problem for problem in verify(old).problems)


def test_a_manifest_of_another_version_is_told_apart(old: Path) -> None:
    manifest = replace(Manifest.load(old), schema_version=SCHEMA_VERSION + 1)
    manifest.save(old)
    with pytest.raises(SchemaTooNew, match="upgrade twdpo"):
        WeightsCache.open(old)
