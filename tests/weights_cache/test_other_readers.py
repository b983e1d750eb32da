"""The cache read by other people's tools, with nothing of this project: the same rows, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.weights_cache.samples import RECIPE, SOURCE, TEXT, fill
from twdpo.weights_cache import CacheWriter, WeightRow, round_mantissa


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[WeightRow]]:
    """A cache of ten pairs with their texts, in three shards."""
    folder = tmp_path_factory.mktemp("shared") / "cache"
    rows = fill(folder, range(10), text=True)
    with CacheWriter.open(folder, RECIPE, dataset=SOURCE, include_text=True) as writer:
        writer.reject(1, "left out")
    return folder, rows


def assert_same(found: list[Mapping[str, Any]], rows: list[WeightRow]) -> None:
    """Every column of every row, as plain Python values, against what was written."""
    assert [row["example_hash"] for row in found] == [row.example_hash for row in rows]
    for got, made in zip(found, rows, strict=True):
        for name in ("chosen", "rejected"):
            side = made.side(name)
            assert list(got[f"{name}_starts"]) == side.starts.tolist()
            assert list(got[f"{name}_ends"]) == side.ends.tolist()
            for layer, weights in side.weights.items():
                values = np.array(got[f"{name}_weights_{layer}"], dtype=np.float32)
                assert values.tobytes() == round_mantissa(weights).tobytes()
        assert np.float32(got["judge_prob_cr"]) == np.float32(made.judge_prob_cr)
        assert np.isnan(got["order_agreement_rejected"])
        assert got["truncated"] == made.truncated
        assert (got["chosen"], got["rejected"]) == (made.chosen_text, made.rejected_text)
        assert [dict(turn) for turn in got["prompt"]][1] == {"role": "user", "content": TEXT * 2}


def test_pandas(written: tuple[Path, list[WeightRow]]) -> None:
    pandas = pytest.importorskip("pandas")
    folder, rows = written
    frame = pandas.read_parquet(folder / "data")
    assert frame["chosen_weights_29"][3].dtype == np.float32
    assert_same(frame.to_dict("records"), rows)


def test_polars(written: tuple[Path, list[WeightRow]]) -> None:
    polars = pytest.importorskip("polars")
    folder, rows = written
    frame = polars.read_parquet(folder / "data" / "*.parquet")
    assert frame.schema["chosen_weights_29"] == polars.List(polars.Float32)
    assert_same(frame.to_dicts(), rows)
    heaviest = polars.scan_parquet(folder / "data" / "*.parquet").select(polars.col("chosen_weights_29").list.max())
    assert heaviest.collect()["chosen_weights_29"].to_list() == [
        float(round_mantissa(row.chosen.weights[29]).max()) for row in rows
    ]


def test_duckdb(written: tuple[Path, list[WeightRow]]) -> None:
    duckdb = pytest.importorskip("duckdb")
    folder, rows = written
    with duckdb.connect() as database:
        answer = database.execute(f"SELECT * FROM '{folder}/data/*.parquet'")
        names = [column[0] for column in answer.description]
        assert_same([dict(zip(names, row, strict=True)) for row in answer.fetchall()], rows)
        answer = database.execute(
            "SELECT unnest(chosen_starts) AS start, unnest(chosen_weights_29) AS weight "
            f"FROM '{folder}/data/*.parquet' WHERE example_hash = '{rows[7].example_hash}' ORDER BY weight DESC"
        )
        tokens = answer.fetchall()
    assert len(tokens) == len(rows[7].chosen)
    heaviest = int(np.argmax(round_mantissa(rows[7].chosen.weights[29])))
    assert tokens[0][0] == rows[7].chosen.starts[heaviest]


LOAD = """
import json, sys, datasets
datasets.disable_progress_bars()
whole = datasets.load_dataset(sys.argv[1])
assert list(whole) == ["train"], list(whole)
stream = datasets.load_dataset(sys.argv[1], split="train", streaming=True)
print(json.dumps([list(whole["train"]), list(stream)]))
finer = stream.reshard()
print(stream.num_shards, finer.num_shards, [row["example_hash"] for row in finer] == whole["train"]["example_hash"][:])
"""


def test_datasets_whole_and_streamed(written: tuple[Path, list[WeightRow]], tmp_path: Path) -> None:
    folder, rows = written
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, shards = done.stdout.splitlines()
    for each in json.loads(found):
        assert_same(each, rows)
    assert shards == "3 3 True"


def test_datasets_splits_a_large_shard_at_its_row_groups(tmp_path: Path) -> None:
    """Workers that stream one published shard each take row groups of their own."""
    fill(tmp_path / "cache", range(1_100), shard_rows=1_100)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "cache")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "1 3 True"
