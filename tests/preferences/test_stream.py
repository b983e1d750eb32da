"""A source as a stream: every row once, in order, as a pair or a reject; the real data sets load."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.errors import DataError, UsageError
from twdpo.preferences import Pair, Reject, load, resolve
from twdpo.preferences.hub import quiet

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
BAD = {"prompt": "q", "chosen": "a", "rejected": "a"}


@given(st.lists(st.booleans(), min_size=1), st.none() | st.integers(min_value=1, max_value=12))
def test_every_row_within_the_limit_is_a_pair_or_a_reject(
    tmp_path_factory: pytest.TempPathFactory, usable: list[bool], limit: int | None
) -> None:
    path = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    path.write_text("".join(json.dumps(GOOD if good else BAD) + "\n" for good in usable))
    stream = load(resolve(str(path)), limit=limit)
    items = list(stream)
    assert [isinstance(item, Pair) for item in items] == usable[:limit]
    assert [item.row for item in items] == list(range(len(items)))
    assert stream.total == len(items)
    assert list(stream) == items


def test_rows_past_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\nbroken\n")
    assert len(list(load(resolve(str(path)), limit=1))) == 1
    stream = iter(load(resolve(str(path))))
    next(stream)
    with pytest.raises(DataError, match="line 2"):
        next(stream)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet", "saved"])
def test_rows_come_with_the_columns_that_are_asked_for(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, object]] = [GOOD | {"weights": [0.5, 0.5], "other": 1}, BAD | {"weights": [1.0], "other": 2}]
    if name == "saved":
        with quiet():
            datasets.Dataset.from_list(rows).save_to_disk(tmp_path / name)
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = load(resolve(str(tmp_path / name)))
    assert stream.columns == ("prompt", "chosen", "rejected", "weights", "other")
    found = list(stream.with_rows(("weights", "not there")))
    assert [row["weights"] for row, _ in found] == [[0.5, 0.5], [1.0]]
    assert [item for _, item in found] == list(stream)
    if not name.endswith(".jsonl"):  # where leaving columns out saves decoding them
        assert not any("other" in row for row, _ in found)
        assert not any("weights" in row for row, _ in stream.with_rows())


def test_a_column_that_one_file_of_a_folder_lacks(tmp_path: Path) -> None:
    for number, row in enumerate((GOOD | {"weights": [1.0]}, GOOD)):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"train-0000{number}-of-00002.parquet")
    stream = load(resolve(str(tmp_path)), limit=2)
    assert [row.get("weights") for row, _ in stream.with_rows(["weights"])] == [[1.0], None]


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one(limit: int) -> None:
    with pytest.raises(UsageError, match=f"--limit {limit}: give at least 1"):
        load(resolve("demo"), limit=limit)


def test_the_embedded_pairs() -> None:
    train, test = load(resolve("demo")), load(resolve("demo[test]"))
    assert all(isinstance(item, Pair) for item in (*train, *test))
    assert (train.source.split, test.source.split) == ("train", "test")
    assert test.total == 24
    hashes = [{item.example_hash for item in stream} for stream in (train, test)]
    assert [len(found) for found in hashes] == [train.total, test.total]
    assert not hashes[0] & hashes[1]
    with pytest.raises(DataError, match="demo has no split 'dev'; it has: train, test"):
        load(resolve("demo[dev]"))


def test_every_hard_row_is_a_pair_or_has_a_reason(shared: Path) -> None:
    path = shared / "data" / "edge_cases.jsonl"
    kinds = [set(json.loads(line)["edge"]) for line in path.read_text("utf-8").split("\n") if line]
    stream = load(resolve(str(path)))
    items = list(stream)
    assert stream.total == len(items) == len(kinds) == 153
    reasons: Counter[str] = Counter(item.reason for item in items if isinstance(item, Reject))
    assert reasons == {
        "both answers are the same": 6,
        "the chosen answer is empty": 5,
        "the rejected answer is empty": 1,
        "the two sides answer different prompts": 5,
    }
    assert sum(isinstance(item, Pair) for item in items) + reasons.total() == 153
    differing = [item for item, kind in zip(items, kinds, strict=True) if "prompts_differ_between_sides" in kind]
    assert {item.reason for item in differing if isinstance(item, Reject)} == {"the two sides answer different prompts"}


@pytest.mark.parametrize(("name", "count"), [("ultrafeedback_2177.parquet", 2177), ("dpo_en_demo_300.parquet", 300)])
def test_real_pairs_agree_with_datasets_own_reading(shared: Path, name: str, count: int) -> None:
    import pyarrow.parquet as pq

    path = shared / "data" / name
    items = list(load(resolve(str(path))))
    table = pq.read_table(path, columns=["chosen", "rejected"]).to_pylist()
    assert len(items) == len(table) == count
    for item, row in zip(items, table, strict=True):
        assert isinstance(item, Pair)
        assert (item.chosen, item.rejected) == (row["chosen"][-1]["content"], row["rejected"][-1]["content"])
        turns = [{"content": message.content, "role": message.role} for message in item.prompt]
        assert turns == row["chosen"][:-1] == row["rejected"][:-1]


@pytest.mark.parametrize(
    "name", ["pairs.jsonl", "pairs.json", "pairs.parquet", "pairs.arrow", "saved", "several", "demo"]
)
def test_reading_from_any_row_on(tmp_path: Path, name: str) -> None:
    """The same rows as reading all of them and passing over the first."""
    rows: list[dict[str, object]] = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": "b"} for i in range(700)]
    path = tmp_path / name
    if name == "saved":
        with quiet():
            datasets.Dataset.from_list(rows).save_to_disk(path)
    elif name == "several":
        path.mkdir()
        for part, (first, last) in enumerate([(0, 10), (10, 300), (300, 700)]):
            pq.write_table(pa.Table.from_pylist(rows[first:last]), path / f"train-{part}.parquet", row_group_size=90)
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=90)
    elif name.endswith(".arrow"):
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = resolve("demo" if name == "demo" else str(path))
    stream = load(source)
    everything = list(stream.rows_from(0))
    assert len(everything) == stream.total
    for start in (1, 9, 10, 11, 89, 90, 255, 256, 300, 600, 699, 700, 900):
        assert list(stream.rows_from(start)) == everything[start:]
    assert list(load(source, limit=95).rows_from(90)) == everything[90:95]


def test_rows_that_are_passed_over_are_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD) + "\nbroken\n" + json.dumps(GOOD) + "\n")
    assert len(list(load(resolve(str(path))).rows_from(2))) == 1
