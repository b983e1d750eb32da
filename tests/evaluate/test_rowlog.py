"""A log of rows: what a crash leaves, what another run meets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from twdpo.errors import DataError, UsageError
from twdpo.evaluate.rowlog import ROWS_FILE, RUN_FILE, RowLog

RUN = {"model": "a", "seed": 0, "about": (1, 2)}
ROWS = [{"key": f"k{i}", "text": f"ä\u2028\n{i}"} for i in range(3)]


def open_log(folder: Path, run: dict[str, object] | None = None) -> RowLog:
    return RowLog.open(folder, RUN if run is None else run, instead="pass another --out")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with open_log(tmp_path / "deep" / "log") as log:
        log.append(ROWS[:1])
        log.append(ROWS[1:])
    return tmp_path / "deep" / "log"


def test_rows_are_there_again(folder: Path) -> None:
    with open_log(folder) as log:
        assert list(log.rows.values()) == ROWS


def test_a_file_cut_anywhere_loses_the_cut_row_alone(folder: Path) -> None:
    content = (folder / ROWS_FILE).read_bytes()
    for size in range(len(content) + 1):
        (folder / ROWS_FILE).write_bytes(content[:size])
        whole = content[:size].count(b"\n")
        with open_log(folder) as log:
            assert list(log.rows.values()) == ROWS[:whole]
            log.append([{"key": "new"}])
        with open_log(folder) as log:
            assert list(log.rows) == [row["key"] for row in ROWS[:whole]] + ["new"]


@pytest.mark.parametrize("line", [b"nonsense", b"[]", b'{"text": 1}', b"\xff"])
def test_a_damaged_line_is_named(folder: Path, line: bytes) -> None:
    file = folder / ROWS_FILE
    file.write_bytes(line + b"\n" + file.read_bytes())
    with pytest.raises(DataError, match=r"rows.jsonl is damaged in line 1"):
        open_log(folder)


def test_another_run_is_refused_with_what_differs(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_log(folder, {"model": "b", "about": (1, 2), "dtype": "float32"})
    message = str(caught.value)
    assert "model: a there, b now" in message
    assert "seed: 0 there, null now" in message
    assert "dtype: null there, float32 now" in message
    assert "about" not in message
    assert message.endswith("pass another --out")
    with open_log(folder) as log:
        assert len(log.rows) == 3


def test_one_run_at_a_time(folder: Path) -> None:
    with open_log(folder), pytest.raises(DataError, match="in use by another run"):
        open_log(folder)
    open_log(folder).close()


@pytest.mark.parametrize("content", ["", "[]", "{"])
def test_a_damaged_description_is_told(folder: Path, content: str) -> None:
    (folder / RUN_FILE).write_text(content)
    with pytest.raises(DataError, match=r"run.json is damaged"):
        open_log(folder)
    (folder / RUN_FILE).unlink()
    with pytest.raises(DataError, match=r"holds rows but no run.json"):
        open_log(folder)


def test_the_description_is_for_people(folder: Path) -> None:
    assert json.loads((folder / RUN_FILE).read_text()) == {"model": "a", "seed": 0, "about": [1, 2]}
