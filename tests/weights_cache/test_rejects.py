"""The list of rejects: every pair once, every line whole."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twdpo.errors import CacheCorrupt, StorageError
from twdpo.weights_cache import Reject, read_rejects, reject_key
from twdpo.weights_cache.rejects import RejectLog


def make_reject(row: int, example_hash: str | None = None, reason: str = "too long") -> Reject:
    return Reject(row=row, dataset="demo", example_hash=example_hash, reason=reason)


def test_a_pair_is_listed_once(tmp_path: Path) -> None:
    log = RejectLog(tmp_path)
    assert log.add(make_reject(1))
    assert log.add(make_reject(2, "a" * 32))
    assert not log.add(make_reject(1, reason="another reason"))
    assert not log.add(make_reject(9, "a" * 32))
    assert RejectLog(tmp_path).keys == {"demo:1", "a" * 32} == {reject_key(1, None, "demo"), "a" * 32}
    assert [reject.row for reject in read_rejects(tmp_path)] == [1, 2]


def test_lines_are_plain_json(tmp_path: Path) -> None:
    RejectLog(tmp_path).add(make_reject(1, reason="Länge 世界"))
    (line,) = (tmp_path / "rejects.jsonl").read_text("utf-8").splitlines()
    assert "Länge 世界" in line
    assert json.loads(line)["reason"] == "Länge 世界"


@given(st.text(st.characters()), st.none() | st.text(st.characters()))
@settings(deadline=None)
def test_any_text_comes_back(tmp_path_factory: pytest.TempPathFactory, reason: str, dataset: str | None) -> None:
    folder = tmp_path_factory.mktemp("rejects")
    reject = Reject(row=0, dataset=dataset, example_hash=None, reason=reason)
    RejectLog(folder).add(reject)
    assert read_rejects(folder) == [reject]


def test_nothing_is_listed_where_there_is_no_file(tmp_path: Path) -> None:
    assert read_rejects(tmp_path) == []
    assert RejectLog(tmp_path).keys == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [1, 20, -1])
def test_a_torn_last_line_is_mended(tmp_path: Path, kept: int) -> None:
    RejectLog(tmp_path).add(make_reject(1))
    path = tmp_path / "rejects.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.replace(b'"row": 1', b'"row": 2')[:kept])
    assert len(read_rejects(tmp_path)) == 1
    log = RejectLog(tmp_path)
    assert log.add(make_reject(2))
    assert [reject.row for reject in read_rejects(tmp_path)] == [1, 2]


def test_workers_see_each_others_lines(tmp_path: Path) -> None:
    logs = [RejectLog(tmp_path) for _ in range(4)]

    def work(log: RejectLog) -> int:
        return sum(log.add(make_reject(row)) for row in range(60))

    with ThreadPoolExecutor(4) as pool:
        added = sum(pool.map(work, logs))
    assert added == 60
    assert sorted(reject.row for reject in read_rejects(tmp_path)) == list(range(60))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RejectLog(tmp_path)
    log.add(make_reject(1))
    real = os.write

    def half(descriptor: int, content: memoryview) -> int:
        if len(content) < 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, content[: len(content) - 10])

    with monkeypatch.context() as patched:
        patched.setattr("twdpo.weights_cache.durable.os.write", half)
        with pytest.raises(StorageError, match="disk is full"):
            log.add(make_reject(2))
    assert [reject.row for reject in read_rejects(tmp_path)] == [1]
    assert log.add(make_reject(2))
    log.sync()
    assert [reject.row for reject in read_rejects(tmp_path)] == [1, 2]


def test_a_changed_line_is_found(tmp_path: Path) -> None:
    log = RejectLog(tmp_path)
    for row in range(3):
        log.add(make_reject(row))
    path = tmp_path / "rejects.jsonl"
    start = len(path.read_bytes().split(b"\n")[0]) + 1
    path.write_bytes(path.read_bytes().replace(b'"row": 1', b'"row": 7'))
    with pytest.raises(CacheCorrupt, match=f"at byte {start}: "):
        read_rejects(tmp_path)
    with pytest.raises(CacheCorrupt, match="delete that line"):
        RejectLog(tmp_path)
