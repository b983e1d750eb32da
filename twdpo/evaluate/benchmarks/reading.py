"""Answer files of the three benchmarks, read back: ours, other models', and the references that the tools come with.

Not for: files of questions (`questions.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.errors import DataError
from twdpo.evaluate.benchmarks.questions import QuestionSet, read_rows

#: Formats of answer files: the benchmarks, and Arena-Hard's before April 2025.
FORMATS = ("alpaca_eval", "mt_bench", "arena_hard", "arena_hard_legacy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One question's answers, a turn each; questions: empty where the file does not hold them."""

    questions: tuple[str, ...]
    answers: tuple[str, ...]
    category: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerSet:
    """A file of answers by question. format: one of FORMATS. name: of the model."""

    format: str
    name: str
    given: Mapping[str, Given]

    @property
    def digest(self) -> str:
        """16 hex digits over all questions and answers."""
        content = [[key, *one.questions, *one.answers] for key, one in self.given.items()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def needs_questions(self) -> bool:
        """Whether the questions' texts are somewhere else."""
        return any(not one.questions for one in self.given.values())

    def with_questions(self, known: QuestionSet) -> AnswerSet:
        """With texts and categories out of a benchmark's questions. Raises DataError where one is missing."""
        by_key = {question.key: question for question in known.questions}
        if self.format == "alpaca_eval":
            by_key = {_alpaca_key(q.turns[0], i): q for i, q in _numbered(known)}
        lacking = [key for key in self.given if key not in by_key]
        if lacking:
            raise DataError(f"{len(lacking)} answers of {self.name} are to other questions (such as {lacking[0]})")
        given = {}
        for key, one in self.given.items():
            if len(one.answers) != len(by_key[key].turns):
                raise DataError(
                    f"{self.name} answers {len(one.answers)} turns of question {key}, which has another number"
                )
            given[key] = replace(one, questions=by_key[key].turns, category=by_key[key].category)
        return replace(self, given=given)


def read_answers(file: Path) -> AnswerSet:
    """An answer file of any of `FORMATS`. Raises UsageError for no file, DataError."""
    rows = read_rows(file)
    kind, parse = _format(rows[0])
    if parse is None:
        raise DataError(
            f"{file} is no answer file of AlpacaEval, MT-Bench or Arena-Hard: its rows hold "
            f"{', '.join(map(str, rows[0]))}"
        )
    given: dict[str, Given] = {}
    seen: dict[str, int] = {}
    names = set()
    for number, row in enumerate(rows, start=1):
        try:
            key, name, one = parse(row, seen)
        except (KeyError, TypeError, IndexError, AttributeError):
            raise DataError(f"{file}: row {number} does not have the form of the first one") from None
        if not all(isinstance(text, str) for text in (*one.questions, *one.answers)) or not one.answers:
            raise DataError(f"{file}: row {number} has an answer that is no text")
        if key in given:
            raise DataError(f"{file} answers question {key} more than once")
        given[key] = one
        names.add(name)
    if len(names) > 1:
        raise DataError(f"{file} has answers of several models: {', '.join(sorted(map(str, names)))}")
    return AnswerSet(format=kind, name=str(names.pop() or file.stem), given=given)


Parse = Callable[[dict[str, Any], dict[str, int]], tuple[str, Any, Given]]


def _format(row: dict[str, Any]) -> tuple[str, Parse | None]:
    if "instruction" in row and "output" in row:
        return "alpaca_eval", _alpaca
    if "messages" in row and "uid" in row:
        return "arena_hard", _arena
    try:
        turn = row["choices"][0]["turns"][0]
    except (KeyError, IndexError, TypeError):
        return "", None
    return ("arena_hard_legacy", _choices) if isinstance(turn, dict) else ("mt_bench", _choices)


def _alpaca(row: dict[str, Any], seen: dict[str, int]) -> tuple[str, Any, Given]:
    instruction = row["instruction"]
    count = seen[instruction] = seen.get(instruction, -1) + 1
    given = Given(questions=(instruction,), answers=(row["output"],), category=str(row.get("dataset") or ""))
    return _alpaca_key(instruction, count), row.get("generator"), given


def _arena(row: dict[str, Any], _seen: dict[str, int]) -> tuple[str, Any, Given]:
    asked = [m["content"] for m in row["messages"] if m["role"] == "user"]
    answer = row["messages"][-1]["content"]["answer"]
    return str(row["uid"]), row.get("model"), Given(questions=tuple(asked), answers=(answer,))


def _choices(row: dict[str, Any], _seen: dict[str, int]) -> tuple[str, Any, Given]:
    turns = row["choices"][0]["turns"]
    answers = tuple(turn["content"] if isinstance(turn, dict) else turn for turn in turns)
    return str(row["question_id"]), row.get("model_id"), Given(questions=(), answers=answers)


def _alpaca_key(instruction: str, count: int) -> str:
    """AlpacaEval joins by the instruction; the number tells those apart that are asked twice."""
    digest = hashlib.sha256(instruction.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{digest}/{count}" if count else digest


def _numbered(known: QuestionSet) -> list[tuple[int, Any]]:
    """AlpacaEval's questions, each with how many times it was there before."""
    seen: dict[str, int] = {}
    numbered = []
    for question in known.questions:
        count = seen[question.turns[0]] = seen.get(question.turns[0], -1) + 1
        numbered.append((count, question))
    return numbered
