"""Defaults, YAML over them, flags over both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from twdpo.config import resolve, to_yaml
from twdpo.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Example:
    name: str
    rate: float = 1e-6
    count: int | None = None
    flag: bool = False
    parts: tuple[str, ...] = ()


def write(path: Path, text: str) -> str:
    file = path / "c.yaml"
    file.write_text(text)
    return str(file)


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, "name: a\nrate: 5e-7\ncount: 3\nparts: [x, y]\n")
    assert resolve(Example, file, {"count": 4, "rate": None}) == Example(name="a", rate=5e-7, count=4, parts=("x", "y"))


def test_dashes_and_numbers_are_meant_well(tmp_path: Path) -> None:
    assert resolve(Example, write(tmp_path, "name: 7\nrate: 1\n"), {}) == Example(name="7", rate=1.0)


def test_round_trip(tmp_path: Path) -> None:
    example = Example(name="ü", rate=0.5, parts=("a",))
    assert resolve(Example, write(tmp_path, to_yaml(example)), {}) == example


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: a", "unknown key 'nmae'; did you mean name?"),
        ("name: a\ncount: many", "count must be a whole number, not 'many'"),
        ("name: a\ncount: true", "count must be a whole number, not True"),
        ("name: a\nrate: fast", "rate must be a number, not 'fast'"),
        ("name: a\nflag: 1", "flag must be true or false, not 1"),
        ("- a\n- b", "expected lines such as"),
        ("a: [", "not YAML"),
        ("rate: 1", "--name is missing"),
    ],
)
def test_wrong_files_get_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        resolve(Example, write(tmp_path, text), {})
    assert "\n" not in str(raised.value)


def test_missing_and_undecodable_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        resolve(Example, str(tmp_path / "none.yaml"), {})
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        resolve(Example, str(tmp_path / "b.yaml"), {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert resolve(Example, write(tmp_path, ""), {"name": "x"}) == Example(name="x")
