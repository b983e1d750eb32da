"""Answering a benchmark from end to end with a stand-in for the model: order, turns, resuming, what is incomplete."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.samples import (
    EchoGenerator,
    alpaca_rows,
    arena_rows,
    loaded,
    mt_bench_rows,
    read_json,
    write_json,
)
from twdpo.errors import DataError, Interrupted, ModelError, UsageError
from twdpo.evaluate.benchmarks import run
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.benchmarks.run import GenerateProgress, generate_answers


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., GenerateConfig]:
    """Makes a configuration with a file of questions."""
    rows = {"alpaca_eval": alpaca_rows, "mt_bench": mt_bench_rows, "arena_hard": arena_rows}

    def config(benchmark: str = "mt_bench", **options: Any) -> GenerateConfig:
        file = write_json(tmp_path / f"{benchmark}.jsonl", rows[benchmark]())
        chosen = {"model": "org/my-model", "questions": str(file), "out": str(tmp_path / "out")} | options
        return GenerateConfig(benchmark=benchmark, **chosen)

    return config


def test_both_turns_of_mt_bench_with_the_temperature_of_their_category(make: Callable[..., GenerateConfig]) -> None:
    result = generate_answers(make(), loaded=loaded())
    rows = read_json(result.path)
    assert [row["question_id"] for row in rows] == list(range(81, 161))
    first, second = rows[0]["choices"][0]["turns"]
    assert first == "to <first plain 0> at 0.7"
    assert second == f"to <first plain 0 | {first} | second 0> at 0.7"
    heat = {row["question_id"]: {text.rpartition(" at ")[2] for text in row["choices"][0]["turns"]} for row in rows}
    expected = ["0.7", "0.7", "0.0", "0.0", "0.0", "0.0", "0.1", "0.1"]  # by tens, in the order of `CATEGORIES`
    assert [heat[81 + 10 * i] for i in range(8)] == [{value} for value in expected]
    assert (result.answered, result.resumed, result.trial, result.tokens) == (80, 0, False, 480)
    assert result.commands[-2] == "python gen_judgment.py --model-list my-model --parallel 2"
    assert str(result.path) in result.commands[1]


@pytest.mark.parametrize(("benchmark", "count", "heat"), [("alpaca_eval", 805, 0.7), ("arena_hard", 500, 0.0)])
def test_the_other_benchmarks(make: Callable[..., GenerateConfig], benchmark: str, count: int, heat: float) -> None:
    generator = EchoGenerator(size=32)
    result = generate_answers(make(benchmark), loaded=loaded(generator))
    assert len(read_json(result.path)) == count
    assert {request.temperature for request in generator.asked} == {heat}
    warm = EchoGenerator(size=32)
    generate_answers(make(benchmark, temperature=1.5, name="warm"), loaded=loaded(warm))
    assert {request.temperature for request in warm.asked} == {1.5}


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_answers(make: Callable[..., GenerateConfig]) -> None:
    whole = generate_answers(make(name="whole"), loaded=loaded())
    expected = [row["choices"] for row in read_json(whole.path)]
    calls = 0

    def every_third(_requests: Any) -> bool:
        nonlocal calls
        calls += 1
        return calls % 4 == 0  # in first and in second turns

    config = make(name="pieces")
    stops: list[str] = []
    while True:
        try:
            result = generate_answers(config, loaded=loaded(EchoGenerator(stop=every_third)))
            break
        except Interrupted as error:
            stops.append(str(error))
    assert len(stops) >= 4
    assert all("run the same command again" in message for message in stops)
    assert [row["choices"] for row in read_json(result.path)] == expected
    assert result.resumed > 0
    again = EchoGenerator()
    assert generate_answers(config, loaded=loaded(again)).resumed == 80
    assert again.asked == []


def test_a_half_kept_batch_is_answered_as_a_whole(make: Callable[..., GenerateConfig], tmp_path: Path) -> None:
    """So that what is drawn and rounded in a batch does not depend on where a run was killed."""
    config = make()
    whole = EchoGenerator()
    generate_answers(config, loaded=loaded(whole))
    rows = tmp_path / "out/work/mt_bench-my-model/rows.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:19]))  # two batches of eight and three of the next
    again = EchoGenerator()
    generate_answers(config, loaded=loaded(again))
    assert again.asked == whole.asked[2 * 16 :]
    assert len(rows.read_bytes().splitlines()) == 80


def test_without_every_answer_there_is_no_official_file(make: Callable[..., GenerateConfig], tmp_path: Path) -> None:
    config = make()
    fails = ["mt_bench/85/0", "mt_bench/99/1"]
    with pytest.raises(ModelError) as caught:
        generate_answers(config, loaded=loaded(EchoGenerator(fails=fails)))
    assert "incomplete: 2 of 80 questions of MT-Bench have no answer" in str(caught.value)
    assert "the prompt is too long" in str(caught.value)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "out/data").exists()
    second = EchoGenerator()
    assert generate_answers(config, loaded=loaded(second)).resumed == 78
    assert len(second.asked) <= 2 * 16


@pytest.mark.parametrize("limit", [None, 7], ids=["official", "trial"])
def test_a_file_of_an_earlier_model_does_not_outlive_an_incomplete_run(
    make: Callable[..., GenerateConfig], tmp_path: Path, limit: int | None
) -> None:
    """As where a model is trained again in its place and its work folder is removed, as the refusal says."""
    config = make(limit=limit)
    path = generate_answers(config, loaded=loaded()).path
    first = path.read_bytes()
    generate_answers(config, loaded=loaded(EchoGenerator(fails=["mt_bench/85/0"])))
    assert [row["choices"] for row in read_json(path)] == [
        row["choices"] for row in map(json.loads, first.splitlines())
    ]
    [work] = (tmp_path / "out/work").iterdir()
    with pytest.raises(UsageError, match="is of another run"):
        generate_answers(config, loaded=loaded(revision="r2"))
    assert path.is_file()
    shutil.rmtree(work)
    with pytest.raises(ModelError, match=f"so {re.escape(str(path))} is not written"):
        generate_answers(config, loaded=loaded(EchoGenerator(fails=["mt_bench/85/0"]), revision="r2"))
    assert not path.exists()


def test_a_trial_is_another_file_and_says_so(make: Callable[..., GenerateConfig], tmp_path: Path) -> None:
    result = generate_answers(make(limit=3), loaded=loaded())
    assert result.path == tmp_path / "out/trials/mt_bench-my-model-first-3.jsonl"
    assert [row["question_id"] for row in read_json(result.path)] == [81, 82, 83]
    assert (result.trial, result.commands) == (True, [])
    assert not (tmp_path / "out/data").exists()
    assert not generate_answers(make(limit=80), loaded=loaded()).trial


def test_another_number_of_questions_is_refused(make: Callable[..., GenerateConfig], tmp_path: Path) -> None:
    few = write_json(tmp_path / "few.jsonl", alpaca_rows(804))
    with pytest.raises(DataError, match=r"has 804 questions and AlpacaEval has 805: .*--limit 804"):
        generate_answers(make("alpaca_eval", questions=str(few)), loaded=loaded())
    with pytest.raises(DataError, match="has 804 questions"):
        generate_answers(make("alpaca_eval", questions=str(few), limit=805), loaded=loaded())
    assert generate_answers(make("alpaca_eval", questions=str(few), limit=804), loaded=loaded()).trial


@pytest.mark.parametrize(
    ("options", "about", "differs"),
    [
        ({"max_new_tokens": 9}, {}, "max new tokens: 1024 there, 9 now"),
        ({"seed": 1}, {}, "seed: 0 there, 1 now"),
        ({"temperature": 0.0}, {}, "temperature: of the benchmark there, 0.0 now"),
        ({"model": "other/my-model"}, {}, "model: org/my-model there, other/my-model now"),
        ({}, {"revision": "r2"}, "model revision: r1 there, r2 now"),
        ({}, {"dtype": "bfloat16"}, "dtype: float32 there, bfloat16 now"),
    ],
)
def test_another_run_in_the_folder_is_refused(
    make: Callable[..., GenerateConfig], options: dict[str, Any], about: dict[str, Any], differs: str
) -> None:
    generate_answers(make(), loaded=loaded())
    with pytest.raises(UsageError, match=differs):
        generate_answers(make(**options), loaded=loaded(**about))


def test_several_models_and_benchmarks_share_a_folder(make: Callable[..., GenerateConfig], tmp_path: Path) -> None:
    for name in ("a", "b"):
        generate_answers(make(name=name), loaded=loaded())
    generate_answers(make("arena_hard", name="a"), loaded=loaded())
    answers = tmp_path / "out/data/mt_bench/model_answer"
    assert sorted(path.name for path in answers.iterdir()) == ["a.jsonl", "b.jsonl"]


def test_what_style_control_lacks_is_said(make: Callable[..., GenerateConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "token_counter", lambda model: f"no tokens of {model}")
    result = generate_answers(make("arena_hard"), loaded=loaded())
    assert result.note is not None
    assert "no metadata, which style control needs: no tokens of gpt-4o" in result.note
    assert "metadata" not in read_json(result.path)[0]
    monkeypatch.setattr(run, "token_counter", lambda model: len)
    complete = generate_answers(make("arena_hard"), loaded=loaded())
    assert complete.note is None
    assert "metadata" in read_json(complete.path)[0]


def test_progress_counts_what_was_there(make: Callable[..., GenerateConfig]) -> None:
    seen: list[GenerateProgress] = []
    generate_answers(make(), loaded=loaded(), on_progress=seen.append)
    assert [now.answered for now in seen] == list(range(8, 88, 8))
    assert {now.total for now in seen} == {80}
    assert seen[-1].tokens == 480


@pytest.mark.parametrize(
    ("model", "name"),
    [("org/my-model", "my-model"), ("a/b/model.gguf", "model"), (".", None), ("out/v1.2+x", "v1.2+x")],
)
def test_a_models_name_is_its_folders(
    model: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert GenerateConfig(benchmark="mt_bench", model=model).called == (name or "here")
