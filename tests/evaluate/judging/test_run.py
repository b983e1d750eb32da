"""Judging two files from end to end with the engine of stage one's tests: what is shown, kept, refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
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
from tests.fixtures.tiny_models import tiny_tokenizer
from twdpo.errors import DataError, Interrupted, ModelError, UsageError
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.benchmarks.run import generate_answers
from twdpo.evaluate.judging.config import JudgeConfig
from twdpo.evaluate.judging.run import judge_answers
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.engines.fake import FakeEngine
from twdpo.pipeline.annotate.prompt import JudgePrompt

TEMPLATE = "{question}\n[A]{answer_a}\n[B]{answer_b}\nBetter:"
ROWS = {"alpaca_eval": alpaca_rows, "mt_bench": mt_bench_rows, "arena_hard": lambda n: arena_rows(count=n)}


class LongerEngine(FakeEngine):
    """Prefers the longer answer; `bias` is added to the one shown first. Keeps the prompts that it was given."""

    def __init__(self, bias: float = 0.0, stop_after: int | None = None) -> None:
        super().__init__()
        self.seen: list[JudgePrompt] = []
        self._bias, self._stop_after = bias, stop_after

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        if self._stop_after is not None and len(self.seen) >= self._stop_after:
            raise KeyboardInterrupt
        self.seen += prompts
        return [self._longer(prompt) for prompt in prompts]

    def _longer(self, prompt: JudgePrompt) -> Reading:
        a, b = (float(span.last - span.first) for span in (prompt.answer_a, prompt.answer_b))
        return Reading(attention={}, verdict_logits=(np.sign(a - b) + self._bias, 0.0))


class BrokenEngine(LongerEngine):
    """Gives `value` as a logit of each prompt after so many whole ones."""

    def __init__(self, value: float, whole: int) -> None:
        super().__init__()
        self._value, self._whole = value, whole

    def _longer(self, prompt: JudgePrompt) -> Reading:
        reading = super()._longer(prompt)
        self._whole -= 1
        return reading if self._whole >= 0 else replace(reading, verdict_logits=(0.0, self._value))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., JudgeConfig]:
    """Two files of answers to the first questions of a benchmark, B's the longer ones but for question 1."""

    def config(benchmark: str, count: int = 6, **options: Any) -> JudgeConfig:
        rows = ROWS[benchmark](count)
        questions = write_json(tmp_path / "questions.jsonl", rows)
        files = {}
        for name in ("a", "b"):
            out = str(tmp_path / f"out{len(list(tmp_path.iterdir()))}")
            generated = GenerateConfig(benchmark=benchmark, model=name, questions=str(questions), out=out, limit=count)
            path = generate_answers(generated, loaded=loaded(EchoGenerator())).path
            answers = read_json(path)
            for number, row in enumerate(answers):
                _lengthen(row, "!" * 9 if (name == "b") == (number != 1) else "")
            files[name] = str(write_json(path, answers))
        (tmp_path / "template.txt").write_text(TEMPLATE)
        chosen = {"questions": str(questions), "judge_template": str(tmp_path / "template.txt"), "max_length": 1024}
        return JudgeConfig(**(files | chosen | {"out": str(tmp_path / "verdicts")} | options))

    return config


def _lengthen(row: dict[str, Any], by: str) -> None:
    if "output" in row:
        row["output"] += by
    elif "choices" in row:
        row["choices"][0]["turns"] = [text + by for text in row["choices"][0]["turns"]]
    else:
        row["messages"][-1]["content"]["answer"] += by


def run(config: JudgeConfig, engine: FakeEngine | None = None) -> Any:
    return judge_answers(config, engine=engine or LongerEngine(), tokenizer=tiny_tokenizer())


def shown(prompt: JudgePrompt) -> str:
    return str(tiny_tokenizer().decode(prompt.ids))


@pytest.mark.parametrize(("benchmark", "turns"), [("alpaca_eval", 1), ("mt_bench", 2), ("arena_hard", 1)])
def test_each_format_by_a_judge_that_prefers_length(
    make: Callable[..., JudgeConfig], benchmark: str, turns: int
) -> None:
    config = make(benchmark)
    result = run(config)
    overall = result.comparison.overall
    assert (overall.wins, overall.ties, overall.losses) == (turns, 0, 5 * turns)
    assert (result.comparison.disagreement, result.comparison.first_preferred) == (0.0, 0.5)
    assert result.comparison.mean_characters_b > result.comparison.mean_characters_a
    back = run(make(benchmark, a=config.b, b=config.a, out=config.a + ".back"))
    assert (back.comparison.overall.wins, back.comparison.overall.losses) == (5 * turns, turns)
    written = json.loads((result.out / "result.json").read_text())
    assert written == json.loads(json.dumps(result.plain()))
    assert written["overall"]["wins"] == turns


def test_position_bias_makes_ties_and_is_told(make: Callable[..., JudgeConfig]) -> None:
    found = run(make("alpaca_eval"), LongerEngine(bias=5.0)).comparison
    assert (found.overall.wins, found.overall.ties, found.overall.losses) == (0, 6, 0)
    assert (found.disagreement, found.first_preferred, found.overall.win_rate.value) == (1.0, 1.0, 0.5)


def test_the_judge_sees_both_orders_and_the_turns_before(make: Callable[..., JudgeConfig]) -> None:
    engine = LongerEngine()
    run(make("mt_bench", count=1), engine)
    texts = [shown(prompt) for prompt in engine.seen]
    assert len(texts) == 4
    assert "second 0" not in texts[0]
    assert texts[0].index("[A]to <first plain 0> at 0.7\n") < texts[0].index("!" * 9)
    assert texts[1].index("!" * 9) < texts[1].index("[B]to <first plain 0> at 0.7\n")
    later = texts[2].partition("[A]")
    assert "first plain 0" in later[0]
    assert later[0].rstrip().endswith("second 0")
    assert "(To the first message:)\nto <first plain 0> at 0.7\n\n(To the second message:)\nto <" in later[2]


def test_a_long_first_answer_leaves_room_for_the_second(make: Callable[..., JudgeConfig]) -> None:
    config = make("mt_bench", count=1)
    rows = read_json(Path(config.a))
    rows[0]["choices"][0]["turns"] = ["word " * 2000, "the second answer"]
    write_json(Path(config.a), rows)
    engine = LongerEngine()
    run(config, engine)
    assert engine.seen[0].truncated
    assert "[…]" in shown(engine.seen[2])
    assert "the second answer" in shown(engine.seen[2])
    assert not engine.seen[2].truncated


def test_an_empty_answer_loses_unjudged(make: Callable[..., JudgeConfig]) -> None:
    config = make("alpaca_eval", count=3)
    for file, empty in ((config.a, {0, 1}), (config.b, {1})):
        rows = read_json(Path(file))
        for i in empty:
            rows[i]["output"] = " \n"
        write_json(Path(file), rows)
    engine = LongerEngine()
    found = run(config, engine).comparison
    assert len(engine.seen) == 2
    assert (found.overall.wins, found.overall.ties, found.overall.losses, found.empty) == (0, 1, 2, 2)


def test_a_stopped_run_goes_on(make: Callable[..., JudgeConfig]) -> None:
    config = make("alpaca_eval", count=40)
    with pytest.raises(Interrupted, match="32 of 40 verdicts are kept"):
        run(config, LongerEngine(stop_after=64))
    engine = LongerEngine()
    result = run(config, engine)
    assert (len(engine.seen), result.resumed) == (16, 32)
    assert result.comparison == run(make("alpaca_eval", count=40, out=config.a + ".whole")).comparison
    assert run(make("alpaca_eval", count=40, limit=7)).questions == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers_are_no_ties(make: Callable[..., JudgeConfig], value: float) -> None:
    """Those of the first window are kept; of the window in which one is none, nothing is."""
    config = make("alpaca_eval", count=20)
    with pytest.raises(ModelError, match="the judge's logits are not numbers; try --dtype float32 or bfloat16"):
        run(config, BrokenEngine(value, whole=2 * 17))
    assert len(read_json(Path(str(config.out)) / "rows.jsonl")) == 16
    assert not (Path(str(config.out)) / "result.json").exists()
    assert run(config).resumed == 16


def test_another_judge_or_other_answers_in_the_folder_are_refused(make: Callable[..., JudgeConfig]) -> None:
    config = make("alpaca_eval")
    run(config)
    with pytest.raises(UsageError, match=r"max length: 1024 there, 512 now.*pass another --out"):
        run(make("alpaca_eval", max_length=512))
    with pytest.raises(UsageError, match=r"a: a, \w+ there, b, \w+ now"):
        run(make("alpaca_eval", a=config.b, b=config.a))


def test_other_questions_are_refused_unless_the_common_ones_are_asked_for(make: Callable[..., JudgeConfig]) -> None:
    config = make("alpaca_eval")
    rows = read_json(Path(config.b))
    write_json(Path(config.b), rows[:4])
    with pytest.raises(DataError, match=r"b lacks 2 that the other answers; .*the 4 that both answer with --common"):
        run(config)
    common = JudgeConfig(a=config.a, b=config.b, common=True, out=config.out, judge_template=config.judge_template)
    result = run(common)
    assert (result.questions, result.left_out, result.comparison.overall.verdicts) == (4, 2, 4)


def test_files_that_cannot_be_compared_say_why(make: Callable[..., JudgeConfig], tmp_path: Path) -> None:
    alpaca, mt_bench = make("alpaca_eval"), make("mt_bench")

    def refused(match: str, **change: Any) -> None:
        fields = {"a": mt_bench.a, "b": mt_bench.b, "questions": mt_bench.questions} | change
        with pytest.raises((DataError, UsageError), match=match):
            run(JudgeConfig(**fields, out=str(tmp_path / "none")))

    refused("compare answers of one benchmark", b=alpaca.b)
    refused("no such file", a=str(tmp_path / "none.json"))
    refused("is no answer file of AlpacaEval, MT-Bench or Arena-Hard", a=mt_bench.questions)
    refused("answers of a are to other questions", questions=str(write_json(tmp_path / "q.jsonl", mt_bench_rows(2))))
    rows = read_json(Path(mt_bench.a))
    refused("answers question 81 more than once", a=str(write_json(tmp_path / "twice.jsonl", [rows[0], rows[0]])))
    mixed = [rows[0], rows[1] | {"model_id": "z"}]
    refused("answers of several models: a, z", a=str(write_json(tmp_path / "mixed.jsonl", mixed)))
    refused("row 2 does not have the form", a=str(write_json(tmp_path / "form.jsonl", [rows[0], {"x": 1}])))
    assert not (tmp_path / "none").exists()


def test_a_model_against_the_references_of_its_benchmark(make: Callable[..., JudgeConfig], tmp_path: Path) -> None:
    reference = write_json(tmp_path / "reference.json", alpaca_rows(6))
    result = run(make("alpaca_eval", b=str(reference), questions=None))
    assert (result.b, result.comparison.overall.wins) == ("gpt4_1106_preview", 6)
    assert set(result.comparison.categories) == {"helpful_base", "koala", "oasst", "selfinstruct", "vicuna"}


def test_arena_hards_baseline_is_read(shared: Path, make: Callable[..., JudgeConfig], tmp_path: Path) -> None:
    """Its own answers are what the judge is shown, to its own questions, in the order of the file."""
    folder = shared / "data/benchmarks/arena_hard_v0.1"
    baseline = read_json(folder / "baseline_gpt-4-0314.jsonl")[:4]
    file = write_json(tmp_path / "baseline.jsonl", baseline)
    config = make("arena_hard", a=str(file), b=str(file), questions=str(folder / "question.jsonl"), max_length=32_768)
    engine = LongerEngine()
    result = run(config, engine)
    assert (result.a, result.b) == ("gpt-4-0314 (A)", "gpt-4-0314 (B)")
    assert result.comparison.overall.ties == 4
    asked = {row["uid"]: row["prompt"] for row in read_json(folder / "question.jsonl")}
    for row, prompt in zip(baseline, engine.seen[::2], strict=True):
        answer = row["messages"][-1]["content"]["answer"]
        assert f"{asked[row['uid']]}\n[A]{answer}\n[B]{answer}\nBetter:" in shown(prompt)
    characters = sum(len(row["messages"][-1]["content"]["answer"]) for row in baseline) / 4
    assert result.comparison.mean_characters_a == result.comparison.mean_characters_b == characters
