"""JSON lines and arrays: what is read, and that errors name the line."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twdpo.errors import DataError
from twdpo.preferences.json_files import JsonRows

ROWS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a\u2028b\x85c", "rejected": "\u2029"},
    {"prompt": "zwei", "chosen": "ü", "rejected": "\x0b\x0c\x1c"},
]


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(ROWS).encode()),
        ("a.jsonl", lines(ROWS).rstrip("\n").encode()),
        ("a.jsonl", lines(ROWS).replace("\n", "\r\n \r\n\n").encode()),
        ("a.jsonl", b"\xef\xbb\xbf" + lines(ROWS).encode()),
        ("a.json", lines(ROWS).encode()),
        ("a.json", json.dumps(ROWS).encode()),
        ("a.json", b"\n " + json.dumps(ROWS, indent=2).encode()),
        ("a.json", b"\xef\xbb\xbf" + json.dumps(ROWS, ensure_ascii=False).encode()),
        ("a.jsonl.gz", gzip.compress(lines(ROWS).encode())),
        ("a.JSON.GZ", gzip.compress(json.dumps(ROWS).encode())),
    ],
)
def test_rows_come_as_they_were_written(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    rows = JsonRows(tmp_path / name)
    assert rows.columns == ("prompt", "chosen", "rejected")
    assert rows.count() == 2
    assert list(rows) == ROWS
    assert list(rows) == ROWS  # a second time


@given(st.lists(st.fixed_dictionaries({"chosen": st.text(), "rejected": st.text()}), min_size=1))
def test_every_text_survives(tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(lines(written).encode())
    rows = JsonRows(path)
    assert list(rows) == written
    assert rows.count() == len(written)


def test_a_key_that_a_later_row_leaves_out_is_null(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "q", "chosen": "a"}\n{"chosen": "b", "extra": 1}\n')
    assert list(JsonRows(tmp_path / "a.jsonl"))[1] == {"prompt": None, "chosen": "b", "extra": 1}


@pytest.mark.parametrize("content", [b"\n\n", b" ", b"[]", b"\xef\xbb\xbf"])
def test_no_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    rows = JsonRows(tmp_path / "a.json")
    assert rows.columns is None
    assert list(rows) == []


GOOD = b'{"chosen": "a", "rejected": "b"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD * 2 + b'{"chosen": \n' + GOOD, "line 3 of PATH is not valid JSON: Expecting value (column 11)"),
        (GOOD + b"\n\nnot json\n", "line 4 of PATH is not valid JSON"),
        (GOOD + b'{"chosen": "\xe9"}\n', "PATH is not UTF-8 text (line 2): save it as UTF-8"),
        ('{"chosen": "a"}\n'.encode("utf-16"), "PATH is not UTF-8 text (line 1)"),
        (GOOD + b"[1]\n", "line 2 of PATH is not a JSON object"),
        (GOOD + b"null\n", "line 2 of PATH is not a JSON object"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2 of PATH cannot be read as JSON"),
        (b'{"chosen": ' + b"1" * 5000 + b"}\n", "line 1 of PATH cannot be read as JSON"),
        (b'[{"chosen": "a"},\n{"chosen": }]', "line 2 of PATH is not valid JSON"),
        (b'[{"chosen": "a"},\n{"chosen": "\xff"}]', "PATH is not UTF-8 text (line 2)"),
        (b'[{"chosen": "a"}, 3]', "item 2 of PATH is not a JSON object"),
        (b"chosen,rejected\n", "line 1 of PATH is not valid JSON"),
    ],
)
def test_what_is_broken_is_named_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=re.escape(message.replace("PATH", str(path)))) as caught:
        list(JsonRows(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"not gzip", gzip.compress(GOOD * 1000)[:-20]])
def test_broken_gzip(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\.gz: it is broken"):
        list(JsonRows(path))
