"""The questions of a benchmark, out of the file that its official tool has.

A text is kept as the file has it, to the byte: AlpacaEval finds answers by their instruction. Not for: getting the file
from the hub (`hub.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.errors import DataError, UsageError

BENCHMARKS = ("alpaca_eval", "mt_bench", "arena_hard")
#: Releases of Arena-Hard; the legacy one is v0.1 as its tool had it before April 2025.
ARENA_VERSIONS = ("v0.1", "v2.0", "legacy")
#: How many questions each has; the official tools take no fewer, or take them wrongly.
OFFICIAL = {
    ("alpaca_eval", ""): 805,
    ("mt_bench", ""): 80,
    ("arena_hard", "v0.1"): 500,
    ("arena_hard", "v2.0"): 750,
    ("arena_hard", "legacy"): 500,
}
_TITLES = {"alpaca_eval": "AlpacaEval", "mt_bench": "MT-Bench", "arena_hard": "Arena-Hard"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question. id: as the official file has it, the row's number where it has none. turns: the user's, in order.

    category: the subset or kind that it is of, empty where the file does not say.
    """

    id: int | str
    turns: tuple[str, ...]
    category: str = ""

    @property
    def key(self) -> str:
        """The id as text."""
        return str(self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSet:
    """A benchmark's questions in their order. version: one of `ARENA_VERSIONS`, else empty."""

    benchmark: str
    version: str
    questions: tuple[Question, ...]

    @property
    def title(self) -> str:
        """Its name for people."""
        return f"{_TITLES[self.benchmark]} {self.version}".rstrip()

    @property
    def official(self) -> int:
        """How many questions the official file has."""
        return OFFICIAL[self.benchmark, self.version]

    @property
    def digest(self) -> str:
        """16 hex digits over ids and texts."""
        content = [[question.id, *question.turns] for question in self.questions]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def first(self, limit: int) -> QuestionSet:
        """Only the first ones."""
        return replace(self, questions=self.questions[:limit])


def read_questions(file: Path, benchmark: str) -> QuestionSet:
    """The questions in `file`, which says itself of which release of Arena-Hard it is. Raises DataError, UsageError."""
    rows = read_rows(file, "--questions")
    version, parse = _kind(rows[0], benchmark)
    if parse is None:
        raise DataError(
            f"{file} is no file of {_TITLES[benchmark]}'s questions: its rows hold {', '.join(map(str, rows[0]))}"
        )
    questions = []
    for number, row in enumerate(rows):
        try:
            questions.append(parse(number, row))
        except (KeyError, TypeError, ValueError, IndexError):
            raise DataError(
                f"{file}: question {number + 1} does not have the form of {_TITLES[benchmark]}'s questions"
            ) from None
    repeated = len(questions) - len({question.key for question in questions})
    if repeated:
        raise DataError(f"{file} has the same question id more than once ({repeated} too many)")
    return QuestionSet(benchmark=benchmark, version=version, questions=tuple(questions))


def read_rows(file: Path, option: str = "") -> list[dict[str, Any]]:
    """The objects of a JSON array or of JSON lines, at least one. Raises UsageError for no file, DataError."""
    named = f"{option} {file}".lstrip()
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{named}: no such file") from None
    except OSError as error:
        raise UsageError(f"{named}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{named}: not UTF-8 text") from None
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except ValueError as error:
        raise DataError(f"{named}: not JSON, and no JSON lines ({error})") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{named}: expected JSON objects, one a line or in an array")
    return list(rows)


def _lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError:
            raise ValueError(f"line {number}") from None
    return rows


Parse = Callable[[int, dict[str, Any]], Question]


def _kind(row: dict[str, Any], benchmark: str) -> tuple[str, Parse | None]:
    """The release, and what makes a question of a row; None where the row is of none."""
    if benchmark == "alpaca_eval":
        return "", _alpaca if "instruction" in row else None
    turns = row.get("turns")
    in_objects = isinstance(turns, list) and bool(turns) and isinstance(turns[0], dict)
    if benchmark == "mt_bench":
        return "", _mt_bench if "question_id" in row and turns and not in_objects else None
    if in_objects:
        return "legacy", _arena_legacy
    version = "v0.1" if row.get("category") == "arena-hard-v0.1" else "v2.0"
    return version, _arena if "uid" in row and "prompt" in row else None


def _alpaca(number: int, row: dict[str, Any]) -> Question:
    # Its own ids are the rows' places, and instructions may repeat.
    return Question(id=number, turns=(_text(row["instruction"]),), category=str(row.get("dataset") or ""))


def _mt_bench(_number: int, row: dict[str, Any]) -> Question:
    if not isinstance(row["question_id"], int):
        raise TypeError
    turns = tuple(map(_text, row["turns"]))
    return Question(id=row["question_id"], turns=turns, category=str(row["category"]))


def _arena(_number: int, row: dict[str, Any]) -> Question:
    return Question(id=_text(row["uid"]), turns=(_text(row["prompt"]),), category=str(row["category"]))


def _arena_legacy(_number: int, row: dict[str, Any]) -> Question:
    turns = tuple(_text(turn["content"]) for turn in row["turns"])
    return Question(id=_text(row["question_id"]), turns=turns, category=str(row.get("category") or ""))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
