"""How the official tools judge an answer file: the commands, to be shown to a person. Not for: running them."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from twdpo.evaluate.benchmarks.formats import bench_name
from twdpo.evaluate.benchmarks.questions import QuestionSet

#: Questions and the baselines' answers, which the tool's own repository lacks.
_ARENA_DATA = "https://huggingface.co/datasets/lmarena-ai/arena-hard-auto"


def official_commands(questions: QuestionSet, file: Path, name: str) -> list[str]:
    """The shell's lines that judge `file`, with the API key of the judge in the environment."""
    path, called = quote(str(file.resolve())), quote(name)
    if questions.benchmark == "alpaca_eval":
        return [f"alpaca_eval --model_outputs {path} --annotators_config weighted_alpaca_eval_gpt4_turbo"]
    if questions.benchmark == "mt_bench":
        return [
            "cd FastChat/fastchat/llm_judge",
            f"mkdir -p data/mt_bench/model_answer && cp {path} data/mt_bench/model_answer/",
            f"python gen_judgment.py --model-list {called} --parallel 2",
            f"python show_result.py --model-list {called}",
        ]
    folder = bench_name(questions).replace("legacy", "v0.1")
    copy = f"mkdir -p data/{folder}/model_answer && cp {path} data/{folder}/model_answer/"
    if questions.version == "legacy":
        return [
            "cd arena-hard-auto    # as before its commit `reformat v0.1`",
            f"{copy}    # and put {called} into model_list of config/judge_config.yaml",
            "python gen_judgment.py",
            "python show_result.py",
        ]
    judge = "gpt-4-1106-preview" if questions.version == "v0.1" else "gpt-4.1"
    show = f"python show_result.py --benchmark {folder} --judge-names {judge}"
    # Its loop over several categories filters what the one before left. Without one it shows hard_prompt alone.
    categories = dict.fromkeys(question.category for question in questions.questions)
    return [
        "cd arena-hard-auto",
        f"git clone {_ARENA_DATA} arena-hard-data && cp -r arena-hard-data/data .    # once, with git-lfs",
        f"{copy}    # and put {called} into model_list of config/{folder}.yaml",
        f"python gen_judgment.py --setting-file config/{folder}.yaml",
        *(f"{show} --category {quote(category)}" for category in categories),
    ]
