"""Files of questions in the official forms, and in wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.samples import alpaca_rows, arena_rows, mt_bench_rows, write_json
from twdpo.errors import DataError, TwdpoError, UsageError
from twdpo.evaluate.benchmarks.questions import OFFICIAL, read_questions


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_alpaca_eval_keeps_texts_to_the_byte_and_the_order(tmp_path: Path, name: str) -> None:
    rows = alpaca_rows()
    rows[5]["instruction"] = rows[4]["instruction"]  # asked twice
    found = read_questions(write_json(tmp_path / name, rows), "alpaca_eval")
    assert [question.turns for question in found.questions] == [(row["instruction"],) for row in rows]
    assert [question.category for question in found.questions] == [row["dataset"] for row in rows]
    assert len({question.key for question in found.questions}) == 805
    assert (found.official, found.title) == (805, "AlpacaEval")


def test_mt_bench_has_two_turns_and_whole_numbers_as_ids(tmp_path: Path) -> None:
    found = read_questions(write_json(tmp_path / "q.jsonl", mt_bench_rows()), "mt_bench")
    assert [question.id for question in found.questions] == list(range(81, 161))
    assert found.questions[10].turns == ("first two\r\nlines\ttab 10", "second 10")
    assert found.questions[10].category == "roleplay"


@pytest.mark.parametrize("version", ["v0.1", "v2.0", "legacy"])
def test_arena_hard_says_its_release(tmp_path: Path, version: str) -> None:
    found = read_questions(write_json(tmp_path / "q.jsonl", arena_rows(version)), "arena_hard")
    assert (found.version, found.title, found.official) == (
        version,
        f"Arena-Hard {version}",
        OFFICIAL["arena_hard", version],
    )
    assert found.questions[4].turns == ("emoji 🦊 and zero\u200dwidth 4",)
    if version == "v2.0":
        assert {question.category for question in found.questions} == {"hard_prompt", "creative_writing"}


def test_the_official_files_are_read(shared: Path) -> None:
    mt_bench = read_questions(shared / "data/benchmarks/mt_bench/question.jsonl", "mt_bench")
    arena = read_questions(shared / "data/benchmarks/arena_hard_v0.1/question.jsonl", "arena_hard")
    assert (len(mt_bench.questions), len(arena.questions), arena.version) == (80, 500, "v0.1")
    assert {len(question.turns) for question in mt_bench.questions} == {2}
    assert len({question.category for question in mt_bench.questions}) == 8


def test_the_digest_sees_every_text_and_id(tmp_path: Path) -> None:
    digests = set()
    for change in ({}, {"question_id": 7}, {"turns": ["first", "other"]}, {"turns": ["first", "second "]}):
        rows = [{"question_id": 1, "category": "math", "turns": ["first", "second"]} | change]
        digests.add(read_questions(write_json(tmp_path / "q.jsonl", rows), "mt_bench").digest)
    assert len(digests) == 4


MT = {"question_id": 1, "category": "math", "turns": ["a", "b"]}
WRONG: list[tuple[str, Any, type[TwdpoError], str]] = [
    ("mt_bench", [{"prompt": "a"}], DataError, "no file of MT-Bench's questions: its rows hold prompt"),
    ("mt_bench", [MT, MT], DataError, "the same question id more than once"),
    ("mt_bench", [MT, {"question_id": 2}], DataError, "question 2 does not have the form"),
    ("mt_bench", [MT, MT | {"question_id": "2"}], DataError, "question 2 does not have the form"),
    ("mt_bench", [MT, MT | {"question_id": 2, "turns": ["a", 3]}], DataError, "question 2 does not have the form"),
    ("arena_hard", [MT], DataError, "no file of Arena-Hard's questions"),
    ("arena_hard", [{"uid": "a", "category": "hard_prompt", "prompt": None}], DataError, "question 1"),
    ("alpaca_eval", [{"text": "a"}], DataError, "no file of AlpacaEval's questions: its rows hold text"),
    ("alpaca_eval", [], DataError, "expected JSON objects"),
    ("alpaca_eval", ["text"], DataError, "expected JSON objects"),
    ("alpaca_eval", '{"instruction": "a"}\n{', DataError, "line 2"),
    ("alpaca_eval", "[{", DataError, "not JSON"),
    ("alpaca_eval", None, UsageError, "no such file"),
]


@pytest.mark.parametrize(("benchmark", "content", "kind", "message"), WRONG)
def test_what_is_wrong_is_told(
    tmp_path: Path, benchmark: str, content: Any, kind: type[TwdpoError], message: str
) -> None:
    file = tmp_path / "q.json"
    if isinstance(content, str):
        file.write_text(content)
    elif content is not None:
        write_json(file, content)
    with pytest.raises(kind, match=message):
        read_questions(file, benchmark)
    with pytest.raises(TwdpoError, match="not UTF-8"):
        read_questions(_latin(tmp_path), benchmark)


def _latin(folder: Path) -> Path:
    (folder / "latin.json").write_bytes('[{"instruction": "é"}]'.encode("latin-1"))
    return folder / "latin.json"
