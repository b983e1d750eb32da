"""Local files and folders: which files are read, as which split, and what is said where there are none."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twdpo.errors import DataError
from twdpo.preferences import Pair, load, resolve
from twdpo.preferences.hub import quiet


def row(answer: str) -> dict[str, str]:
    return {"prompt": "q", "chosen": answer, "rejected": "no"}


def write(path: Path, *answers: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist([row(answer) for answer in answers]), path)
    else:
        path.write_text("".join(json.dumps(row(answer)) + "\n" for answer in answers))
    return path


def answers(path: Path, split: str | None = None) -> list[str]:
    return [item.chosen for item in load(resolve(str(path), split=split)) if isinstance(item, Pair)]


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".parquet", ".JSONL"])
def test_one_file(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs{ending}"
    write(path.with_suffix(ending.lower()), "a", "b").rename(path)
    stream = load(resolve(str(path)))
    assert [item.row for item in stream] == [0, 1]
    assert (stream.total, stream.source.split, stream.source.location) == (2, "train", str(path))


def test_a_folder_is_read_in_the_order_of_its_files_names(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", "3")
    write(tmp_path / "a.jsonl", "1", "2")
    write(tmp_path / "more" / "c.jsonl", "4")
    stream = load(resolve(str(tmp_path)))
    assert [(item.row, item.chosen) for item in stream if isinstance(item, Pair)] == [
        (0, "1"),
        (1, "2"),
        (2, "3"),
        (3, "4"),
    ]
    assert stream.total == 4


def test_what_is_not_data_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "pairs.parquet", "1")
    write(tmp_path / ".cache" / "old.parquet", "hidden")
    write(tmp_path / "_tmp.parquet", "unfinished")
    (tmp_path / "README.md").write_text("# Pairs\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert answers(tmp_path) == ["1"]


def test_the_data_folder_goes_first_as_on_the_hub(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00001.parquet", "1")
    write(tmp_path / "rejects.jsonl", "no data")
    assert answers(tmp_path) == ["1"]


@pytest.mark.parametrize(
    "files",
    [
        {"train-00000-of-00002.parquet": "1", "train-00001-of-00002.parquet": "2", "test-00000-of-00001.parquet": "t"},
        {"my_train.jsonl": "1", "other.jsonl": "2", "my-test.jsonl": "t"},
        {"train/a.jsonl": "1", "train/b.jsonl": "2", "test/a.jsonl": "t"},
        {"data/train-00000-of-00001.parquet": "1", "data/train.parquet": "2", "data/test.parquet": "t"},
    ],
)
def test_names_of_files_and_folders_tell_the_split(tmp_path: Path, files: dict[str, str]) -> None:
    for name, answer in files.items():
        write(tmp_path / name, answer)
    assert sorted(answers(tmp_path)) == ["1", "2"]
    assert sorted(answers(tmp_path, "train")) == ["1", "2"]
    assert answers(tmp_path, "test") == ["t"]
    with pytest.raises(DataError, match=r"has no split 'dev'; it has: .*te"):
        answers(tmp_path, "dev")


def test_splits_by_any_name_and_synonyms(tmp_path: Path) -> None:
    write(tmp_path / "train_prefs-00000-of-00001.parquet", "1")
    write(tmp_path / "test_prefs-00000-of-00001.parquet", "2")
    write(tmp_path / "dev.parquet", "3")
    assert answers(tmp_path) == ["1"]
    assert answers(tmp_path, "test_prefs") == ["2"]
    assert answers(tmp_path, "validation") == ["3"]


def test_a_file_of_another_split_than_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", "1")
    assert answers(path, "train") == ["1"]
    with pytest.raises(DataError, match="has no split 'test'; it has: train"):
        answers(path, "test")


def test_saved_to_disk(tmp_path: Path) -> None:
    with quiet():
        train = datasets.Dataset.from_list([row("1"), row("2")])
        datasets.DatasetDict({"train": train, "test": train.select([1])}).save_to_disk(tmp_path / "both")
        train.select([1, 0]).save_to_disk(tmp_path / "one")
        train.filter(lambda _: False).save_to_disk(tmp_path / "none")
    assert answers(tmp_path / "both") == ["1", "2"]
    assert answers(tmp_path / "both", "test") == ["2"]
    assert answers(tmp_path / "one") == ["2", "1"]
    with pytest.raises(DataError, match="has no split 'dev'; it has: train, test"):
        answers(tmp_path / "both", "dev")
    with pytest.raises(DataError, match="is empty"):
        answers(tmp_path / "none")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*one: it is broken"):
        answers(tmp_path / "one")


def test_an_empty_shard_among_others_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    write(tmp_path / "b.jsonl", "1")
    assert answers(tmp_path) == ["1"]


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        ({"a.jsonl": b""}, "a.jsonl", "a.jsonl is empty (0 bytes)"),
        ({"a.jsonl": b"\n"}, "a.jsonl", "a.jsonl is empty: it holds no rows"),
        ({"a.parquet": b""}, "a.parquet", "a.parquet is empty (0 bytes)"),
        ({"a.csv": b"chosen,rejected\n"}, "a.csv", "cannot tell what kind of file"),
        ({"README.md": b"#"}, ".", "no data files in folder"),
        ({}, ".", "no data files in folder"),
        ({"a.jsonl": b"{}", "b.parquet": b"PAR1"}, ".", "data files of several kinds"),
        ({"a.jsonl": b'{"text": "x"}\n'}, "a.jsonl", "a.jsonl has the columns text; expected `chosen`"),
        ({"a.jsonl": b'{"chosen": "a", "rejected": "b"}', "b.jsonl": b'{"x": 1}'}, ".", "b.jsonl has the columns x;"),
        ({"a.jsonl": b"{}"}, "a.jsonl", "has the columns (none)"),
        ({"a.jsonl": b"broken"}, "a.jsonl", "line 1 of"),
    ],
)
def test_mistakes_come_as_one_line_before_any_row(
    tmp_path: Path, files: dict[str, bytes], name: str, message: str
) -> None:
    for path, content in files.items():
        (tmp_path / path).write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        load(resolve(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "1")
    path.chmod(0)
    with pytest.raises(DataError, match="permission denied"):
        answers(path)


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    source = resolve(str(write(tmp_path / "a.jsonl", "1")))
    stream = load(source)
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="no such file or folder"):
        list(stream)
    with pytest.raises(DataError, match="no such file or folder"):
        load(source)
