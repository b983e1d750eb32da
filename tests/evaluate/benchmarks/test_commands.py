"""The commands of the official tools, line by line: what their own code reads, and every category of Arena-Hard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.samples import alpaca_rows, arena_rows, mt_bench_rows, write_json
from twdpo.evaluate.benchmarks.commands import official_commands
from twdpo.evaluate.benchmarks.questions import read_questions

ARENA = "git clone https://huggingface.co/datasets/lmarena-ai/arena-hard-auto arena-hard-data"
MT_BENCH = [
    "cd FastChat/fastchat/llm_judge",
    "mkdir -p data/mt_bench/model_answer && cp {file} data/mt_bench/model_answer/",
    "python gen_judgment.py --model-list my-model --parallel 2",
    "python show_result.py --model-list my-model",
]
LEGACY = [
    "cd arena-hard-auto",
    "mkdir -p data/arena-hard-v0.1/model_answer && cp {file} data/arena-hard-v0.1/model_answer/",
    "python gen_judgment.py",
    "python show_result.py",
]


def arena(version: str, judge: str, *categories: str) -> list[str]:
    """Of a release that came with the tool as it is now."""
    show = f"python show_result.py --benchmark arena-hard-{version} --judge-names {judge} --category"
    return [
        "cd arena-hard-auto",
        f"{ARENA} && cp -r arena-hard-data/data .",
        f"mkdir -p data/arena-hard-{version}/model_answer && cp {{file}} data/arena-hard-{version}/model_answer/",
        f"python gen_judgment.py --setting-file config/arena-hard-{version}.yaml",
        *(f"{show} {category}" for category in categories),
    ]


@pytest.mark.parametrize(
    ("benchmark", "rows", "expected"),
    [
        (
            "alpaca_eval",
            alpaca_rows(),
            ["alpaca_eval --model_outputs {file} --annotators_config weighted_alpaca_eval_gpt4_turbo"],
        ),
        ("mt_bench", mt_bench_rows(), MT_BENCH),
        ("arena_hard", arena_rows("v0.1"), arena("v0.1", "gpt-4-1106-preview", "arena-hard-v0.1")),
        ("arena_hard", arena_rows("v2.0"), arena("v2.0", "gpt-4.1", "hard_prompt", "creative_writing")),
        ("arena_hard", arena_rows("legacy"), LEGACY),
    ],
    ids=["alpaca_eval", "mt_bench", "v0.1", "v2.0", "legacy"],
)
def test_every_line(tmp_path: Path, benchmark: str, rows: list[dict[str, Any]], expected: list[str]) -> None:
    questions = read_questions(write_json(tmp_path / "q.jsonl", rows), benchmark)
    file = tmp_path / "a folder" / "answers.jsonl"
    found = official_commands(questions, file, "my-model")
    assert [line.partition("    #")[0] for line in found] == [line.format(file=f"'{file}'") for line in expected]
