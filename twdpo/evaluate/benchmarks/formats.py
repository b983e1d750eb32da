"""Answer files as the official tools read them, to the key: one function a format, and where the file belongs.

All text beyond ASCII is escaped, so that no reader's encoding or idea of a line can change it. Not for: reading answers
(`reading.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twdpo.evaluate.benchmarks.markdown import style
from twdpo.evaluate.benchmarks.questions import Question, QuestionSet
from twdpo.weights_cache.durable import make_folder, write_file

_ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

CountTokens = Callable[[str], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A question with an answer to each of its turns. time: when, in seconds since 1970."""

    question: Question
    turns: tuple[str, ...]
    time: float


def official_path(out: Path, questions: QuestionSet, name: str) -> Path:
    """Where the official file goes: under `out` as under the tool's own folder."""
    if questions.benchmark == "alpaca_eval":
        return out / "results" / name / "model_outputs.json"
    return out / "data" / bench_name(questions) / "model_answer" / f"{name}.jsonl"


def trial_path(out: Path, questions: QuestionSet, name: str, limit: int) -> Path:
    """Where answers to the first questions only go: no official tool looks there."""
    suffix = "json" if questions.benchmark == "alpaca_eval" else "jsonl"
    return out / "trials" / f"{bench_name(questions)}-{name}-first-{limit}.{suffix}"


def bench_name(questions: QuestionSet) -> str:
    """The benchmark as its tool calls its folder; the legacy form of Arena-Hard has one of its own here."""
    return f"arena-hard-{questions.version}" if questions.benchmark == "arena_hard" else questions.benchmark


def write_answers(
    path: Path, questions: QuestionSet, answers: Sequence[Answered], name: str, count_tokens: CountTokens | None
) -> None:
    """Write the file as a whole. count_tokens: None leaves out what needs it. Raises StorageError, CacheError."""
    make_folder(path.parent)
    if questions.benchmark == "alpaca_eval":
        rows = [_alpaca(answer, name) for answer in answers]
        content = "[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n"
    else:
        make: Callable[[Answered, str, CountTokens | None], dict[str, Any]] = {
            "mt_bench": _mt_bench,
            "v0.1": _arena,
            "v2.0": _arena,
            "legacy": _arena_legacy,
        }[questions.version or questions.benchmark]
        content = _lines(make(answer, name, count_tokens) for answer in answers)
    write_file(path, content.encode("ascii"))


def _lines(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _alpaca(answer: Answered, name: str) -> dict[str, Any]:
    row = {"instruction": answer.question.turns[0], "output": answer.turns[0], "generator": name}
    return row | ({"dataset": answer.question.category} if answer.question.category else {})


def _mt_bench(answer: Answered, name: str, _count_tokens: CountTokens | None) -> dict[str, Any]:
    return {
        "question_id": answer.question.id,
        "answer_id": short_id(answer, name),
        "model_id": name,
        "choices": [{"index": 0, "turns": list(answer.turns)}],
        "tstamp": answer.time,
    }


def _arena(answer: Answered, name: str, count_tokens: CountTokens | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "uid": answer.question.id,
        "ans_id": short_id(answer, name),
        "model": name,
        "messages": [
            {"role": "user", "content": answer.question.turns[0]},
            {"role": "assistant", "content": {"answer": answer.turns[0]}},
        ],
        "tstamp": answer.time,
    }
    return row if count_tokens is None else row | {"metadata": style(answer.turns[0], count_tokens)}


def _arena_legacy(answer: Answered, name: str, count_tokens: CountTokens | None) -> dict[str, Any]:
    turns = [
        {"content": text} | ({} if count_tokens is None else {"token_len": count_tokens(text)}) for text in answer.turns
    ]
    return {
        "question_id": answer.question.id,
        "answer_id": short_id(answer, name),
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": answer.time,
    }


def short_id(answer: Answered, name: str) -> str:
    """22 characters in the alphabet of shortuuid, by what the answer is: the same answer has the same one."""
    content = json.dumps([name, answer.question.id, *answer.question.turns, *answer.turns])
    number = int.from_bytes(hashlib.sha256(content.encode()).digest()[:16], "big")
    digits = []
    for _ in range(22):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
