"""Answer files to the key, against rows written by hand from the formats' descriptions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluate.benchmarks.samples import NASTY, alpaca_rows, arena_rows, mt_bench_rows, read_json, write_json
from twdpo.evaluate.benchmarks.formats import Answered, official_path, short_id, trial_path, write_answers
from twdpo.evaluate.benchmarks.markdown import style, token_counter
from twdpo.evaluate.benchmarks.questions import Question, QuestionSet, read_questions
from twdpo.evaluate.benchmarks.reading import read_answers

ANSWER = "# One\n\n1. a\n- b\n\n**bold** and __more__\n```python\n# no header\n- no list\n```\n"
METADATA = {
    "token_len": len(ANSWER),
    "header_count": {"h1": 1, "h2": 0, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
    "list_count": {"ordered": 1, "unordered": 1},
    "bold_count": {"**": 1, "__": 1},
}


def written(tmp_path: Path, benchmark: str, rows: list[dict[str, Any]], answer: str, count: Any = len) -> Any:
    """The official file for one answer to each question, and the questions."""
    questions = read_questions(write_json(tmp_path / "q.jsonl", rows), benchmark)
    answers = [Answered(question=q, turns=(answer,) * len(q.turns), time=1.5) for q in questions.questions]
    path = official_path(tmp_path, questions, "my-model")
    write_answers(path, questions, answers, "my-model", count)
    return read_json(path), questions, path


def test_alpaca_eval(tmp_path: Path) -> None:
    rows = alpaca_rows(16)
    del rows[0]["dataset"]
    found, _, path = written(tmp_path, "alpaca_eval", rows, ANSWER)
    assert path == tmp_path / "results/my-model/model_outputs.json"
    assert found[0] == {"instruction": "plain 0", "output": ANSWER, "generator": "my-model"}
    assert found[9] == {
        "instruction": "  leading and trailing   9",
        "output": ANSWER,
        "generator": "my-model",
        "dataset": "vicuna",
    }
    assert [row["instruction"] for row in found] == [row["instruction"] for row in rows]


def test_mt_bench(tmp_path: Path) -> None:
    found, questions, path = written(tmp_path, "mt_bench", mt_bench_rows(1), "an answer")
    assert path == tmp_path / "data/mt_bench/model_answer/my-model.jsonl"
    [row] = found
    answer_id = row.pop("answer_id")
    assert row == {
        "question_id": 81,
        "model_id": "my-model",
        "choices": [{"index": 0, "turns": ["an answer", "an answer"]}],
        "tstamp": 1.5,
    }
    assert re.fullmatch("[2-9A-HJ-NP-Za-km-z]{22}", answer_id)
    assert trial_path(tmp_path, questions, "my-model", 3).parent == tmp_path / "trials"


@pytest.mark.parametrize("version", ["v0.1", "v2.0"])
def test_arena_hard(tmp_path: Path, version: str) -> None:
    found, _, path = written(tmp_path, "arena_hard", arena_rows(version, 3), ANSWER)
    assert path == tmp_path / f"data/arena-hard-{version}/model_answer/my-model.jsonl"
    row = found[2]
    assert row.pop("ans_id") != found[1]["ans_id"]
    assert row == {
        "uid": "u2",
        "model": "my-model",
        "messages": [
            {"role": "user", "content": "two\r\nlines\ttab 2"},
            {"role": "assistant", "content": {"answer": ANSWER}},
        ],
        "tstamp": 1.5,
        "metadata": METADATA,
    }
    assert list(row["metadata"]) == ["token_len", "header_count", "list_count", "bold_count"]
    without, _, _ = written(tmp_path, "arena_hard", arena_rows(version, 1), ANSWER, None)
    assert "metadata" not in without[0]


def test_arena_hard_has_the_keys_of_its_own_baseline(shared: Path, tmp_path: Path) -> None:
    [official] = read_json(shared / "data/benchmarks/arena_hard_v0.1/baseline_gpt-4-0314.jsonl")[:1]
    [ours], _, _ = written(tmp_path, "arena_hard", arena_rows("v0.1", 1), ANSWER)
    assert set(ours) == {*official, "metadata"}
    assert [set(message) for message in ours["messages"]] == [set(message) for message in official["messages"]]
    assert set(ours["messages"][1]["content"]) == set(official["messages"][1]["content"])
    assert {name: type(ours[name]) for name in official} == {name: type(value) for name, value in official.items()}


def test_arena_hard_as_it_was(tmp_path: Path) -> None:
    found, _, path = written(tmp_path, "arena_hard", arena_rows("legacy", 1), "three")
    assert path == tmp_path / "data/arena-hard-legacy/model_answer/my-model.jsonl"
    [row] = found
    row.pop("answer_id")
    assert row == {
        "question_id": "q0",
        "model_id": "my-model",
        "choices": [{"index": 0, "turns": [{"content": "three", "token_len": 5}]}],
        "tstamp": 1.5,
    }


@pytest.mark.parametrize("benchmark", ["alpaca_eval", "mt_bench", "arena_hard"])
def test_files_are_ascii_and_texts_come_back_whole(tmp_path: Path, benchmark: str) -> None:
    make = {"alpaca_eval": alpaca_rows, "mt_bench": mt_bench_rows, "arena_hard": lambda n: arena_rows(count=n)}
    for text in (*NASTY, "half \ud800 of a pair", ""):
        _, questions, path = written(tmp_path, benchmark, make[benchmark](8), text)
        assert path.read_bytes().isascii()
        back = read_answers(path)
        assert back.name == "my-model"
        assert [one.answers for one in back.given.values()] == [(text,) * len(q.turns) for q in questions.questions]
        if benchmark != "mt_bench":
            assert [one.questions for one in back.given.values()] == [q.turns for q in questions.questions]


#: Text, and what it counts: (h1, h3), (ordered, unordered), (**, __)
COUNTS = [
    ("# a\n#b\n### c\n#\td", (2, 1), (0, 0), (0, 0)),
    ("text # no\n # no", (0, 0), (0, 0), (0, 0)),
    ("1. a\n  22. b\n3.no\n* c\n + d\n-e", (0, 0), (2, 2), (0, 0)),
    ("**a** **b\nc**", (0, 0), (0, 0), (1, 0)),
    ("__init__ a__b__", (0, 0), (0, 0), (0, 2)),
    ("```\n# a\n1. b\n**c**\n```\n# d", (1, 0), (0, 0), (0, 0)),
    ("```\n# a\n", (1, 0), (0, 0), (0, 0)),
    ("```\n# a `inline`\n```", (1, 0), (0, 0), (0, 0)),
]


@pytest.mark.parametrize(("text", "headers", "lists", "bold"), COUNTS)
def test_markdown_is_counted_outside_of_blocks(
    text: str, headers: tuple[int, int], lists: tuple[int, int], bold: tuple[int, int]
) -> None:
    found = style(text, len)
    assert (found["header_count"]["h1"], found["header_count"]["h3"]) == headers
    assert tuple(found["list_count"].values()) == lists
    assert tuple(found["bold_count"].values()) == bold


def test_tokens_are_gpt_4os_or_it_is_said_why_not() -> None:
    counter = token_counter()
    if isinstance(counter, str):
        assert "tiktoken" in counter
    else:
        assert counter("Hello world") == 2
        assert counter("<|endoftext|>") > 1


@given(st.lists(st.text(max_size=5), min_size=1, max_size=3), st.text(max_size=5))
def test_ids_tell_answers_apart(turns: list[str], name: str) -> None:
    question = Question(id=1, turns=("q",))
    here = Answered(question=question, turns=tuple(turns), time=1.0)
    assert short_id(here, name) == short_id(Answered(question=question, turns=tuple(turns), time=2.0), name)
    other = Answered(question=question, turns=(*turns, ""), time=1.0)
    assert short_id(here, name) != short_id(other, name)
    assert len(short_id(here, name)) == 22


def test_a_set_of_questions_can_be_begun(tmp_path: Path) -> None:
    questions = read_questions(write_json(tmp_path / "q.jsonl", mt_bench_rows()), "mt_bench")
    assert isinstance(questions, QuestionSet)
    assert [question.id for question in questions.first(2).questions] == [81, 82]
    assert json.dumps(questions.first(2).digest) != json.dumps(questions.digest)
