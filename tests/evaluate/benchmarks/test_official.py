"""The official tools' own readers on our files: alpaca_eval's and FastChat's (`make test-official`). No API is called.

Arena-Hard's tool is no package; `test_formats.py` has its format by hand.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.evaluate.benchmarks.samples import EchoGenerator, alpaca_rows, loaded, mt_bench_rows, read_json, write_json
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.benchmarks.run import generate_answers

# Both warn on their own account, at their import and beyond.
pytestmark = pytest.mark.filterwarnings("ignore")


def official(package: str, module: str) -> Any:
    """A module of an official tool; the test is skipped where it is not installed, unless it must be."""
    if importlib.util.find_spec(package) is None and "TWDPO_OFFICIAL" not in os.environ:
        pytest.skip(f"needs {package}, which has an environment of its own: make test-official")
    return importlib.import_module(module)


def answers(folder: Path, benchmark: str, questions: list[dict[str, Any]], name: str = "my-model") -> Path:
    """Our official file of made-up answers to these questions."""
    file = write_json(folder / f"{benchmark}.json", questions)
    config = GenerateConfig(benchmark=benchmark, model="m", name=name, questions=str(file), out=str(folder / "out"))
    return generate_answers(config, loaded=loaded(EchoGenerator(size=64))).path


def test_alpaca_eval_reads_all_rows_and_finds_every_instruction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    utils = official("alpaca_eval", "alpaca_eval.utils")
    annotators = importlib.import_module("alpaca_eval.annotators")
    questions = alpaca_rows()
    reference = write_json(tmp_path / "reference.json", questions)
    ours = utils.load_or_convert_to_dataframe(answers(tmp_path, "alpaca_eval", questions))
    theirs = utils.load_or_convert_to_dataframe(reference)
    assert len(ours) == 805
    assert list(ours["instruction"]) == [row["instruction"] for row in questions]
    assert utils.get_generator_name(None, ours) == "my-model"

    def merge(outputs: Any) -> list[dict[str, Any]]:
        seen: list[Any] = []
        stand_in = SimpleNamespace(__call__=lambda table: seen.append(table) or [])
        annotators.PairwiseAnnotator.annotate_head2head(stand_in, theirs, outputs, keys_to_merge=["instruction"])
        return list(seen[0].to_dict("records"))

    with caplog.at_level(logging.WARNING):
        merged = merge(ours)
    assert [row["instruction"] for row in merged] == [row["instruction"] for row in questions]
    assert all(f"<{row['instruction']}>" in row["output_2"] for row in merged)
    assert caplog.records == []
    # What the docs warn of: with a row less it goes on, and every place behind it is another one.
    with caplog.at_level(logging.WARNING):
        assert len(merge(ours.drop(index=3))) == 804
    assert "missing examples" in caplog.text


def test_alpaca_eval_evaluates_our_file_from_end_to_end(tmp_path: Path) -> None:
    """With a stand-in for its judge alone, which prefers the longer answer: its reading, joining and win rate."""
    alpaca_eval = official("alpaca_eval", "alpaca_eval")
    real = importlib.import_module("alpaca_eval.annotators").PairwiseAnnotator

    class Longer:
        def __init__(self, **_settings: Any) -> None:
            pass

        def __call__(self, table: Any) -> list[dict[str, Any]]:
            longer = table["output_2"].str.len() > table["output_1"].str.len()
            return list(table.assign(preference=1.0 + longer, annotator="longer").to_dict("records"))

        def annotate_head2head(self, **outputs: Any) -> Any:
            return real.annotate_head2head(self, keys_to_merge=["instruction"], **outputs)

    questions = alpaca_rows()
    board, annotations = alpaca_eval.evaluate(
        model_outputs=answers(tmp_path, "alpaca_eval", questions),
        reference_outputs=write_json(tmp_path / "reference.json", questions),
        annotators_config="longer",
        Annotator=Longer,
        fn_metric="get_winrate",
        sort_by="win_rate",
        output_path=None,
        precomputed_leaderboard=None,
        is_return_instead_of_print=True,
    )
    assert len(annotations) == 805
    row = board.loc["my-model"]
    assert (row["n_total"], row["win_rate"]) == (805, 100)  # every made-up answer repeats its question and more


def test_fastchat_loads_and_checks_our_file_and_makes_its_matches(tmp_path: Path) -> None:
    common = official("fastchat", "fastchat.llm_judge.common")
    gen_judgment = importlib.import_module("fastchat.llm_judge.gen_judgment")
    rows = mt_bench_rows()
    file = write_json(tmp_path / "question.jsonl", rows)
    for name in ("my-model", "other"):
        path = answers(tmp_path, "mt_bench", rows, name)
    questions = common.load_questions(str(file), None, None)
    found = common.load_model_answers(str(path.parent))
    assert list(found) == ["my-model", "other"]
    assert sorted(found["my-model"]) == [row["question_id"] for row in rows]
    assert sorted(common.get_model_list(str(path.parent))) == ["my-model", "other"]
    references = {"gpt-4": found["my-model"]}
    prompts = defaultdict(lambda: {"type": "single", "prompt_template": "{question_1}", "system_prompt": ""})
    for make_judges, make_matches in (
        (gen_judgment.make_judge_single, gen_judgment.make_match_single),
        (gen_judgment.make_judge_pairwise, gen_judgment.make_match_all_pairs),
    ):
        judges = make_judges("gpt-4", prompts)
        common.check_data(questions, found, references, list(found), judges)
        matches = make_matches(questions, list(found), found, judges["default-mt"], multi_turn=True)
        assert len(matches) == 80 * (2 if make_matches is gen_judgment.make_match_single else 1)
        for match in matches:
            answer = getattr(match, "answer", None) or match.answer_1
            assert len(answer["choices"][0]["turns"]) == len(match.question["turns"]) == 2
    missing = dict(list(found["other"].items())[1:])
    with pytest.raises(AssertionError, match="Missing model other's answer to Question 81"):
        common.check_data(questions, {"other": missing}, references, ["other"], {})


def test_fastchat_takes_the_official_questions(tmp_path: Path, shared: Path) -> None:
    common = official("fastchat", "fastchat.llm_judge.common")
    folder = shared / "data/benchmarks/mt_bench"
    questions = common.load_questions(str(folder / "question.jsonl"), None, None)
    path = answers(tmp_path, "mt_bench", read_json(folder / "question.jsonl"))
    references = {}
    for line in read_json(folder / "reference_answer_gpt-4.jsonl"):
        references[line["question_id"]] = line
    gen_judgment = importlib.import_module("fastchat.llm_judge.gen_judgment")
    judges = gen_judgment.make_judge_single("gpt-4", defaultdict(dict))
    found = common.load_model_answers(str(path.parent))
    common.check_data(questions, found, {"gpt-4": references}, ["my-model"], judges)
