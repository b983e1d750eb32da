"""Judging two answer files from end to end: matches to the judge in both orders, verdicts kept, the result written.

The judge, its prompt and its verdicts are those of stage one. Not for: what verdicts mean (`verdicts.py`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twdpo.errors import DataError, Interrupted, ModelError
from twdpo.evaluate.benchmarks.hub import find_questions
from twdpo.evaluate.benchmarks.questions import read_questions
from twdpo.evaluate.benchmarks.reading import AnswerSet, read_answers
from twdpo.evaluate.judging.config import JudgeConfig
from twdpo.evaluate.judging.matches import Match, matches
from twdpo.evaluate.judging.verdicts import Comparison, Verdict, compare
from twdpo.evaluate.rowlog import RowLog
from twdpo.evaluate.statistics import Bootstrap
from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.prompt import JudgePrompt, PromptError, load_template
from twdpo.pipeline.annotate.weights import verdict_probability
from twdpo.weights_cache.durable import write_file

#: Matches that are judged and kept together, at the least.
_WINDOW = 16
RESULT_FILE = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeResult:
    """What was compared by what, and how it came out. resumed: verdicts of earlier runs. left_out: by `common`."""

    a: str
    b: str
    format: str
    judge: str
    comparison: Comparison
    questions: int
    left_out: int
    resumed: int
    out: Path

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        about = {name: getattr(self, name) for name in ("a", "b", "format", "judge", "questions", "left_out")}
        return about | self.comparison.plain()


def judge_answers(
    config: JudgeConfig,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    engine: Engine | None = None,
    tokenizer: Any = None,
) -> JudgeResult:
    """Judge what is not judged yet, and write the result. `engine` and `tokenizer` replace the judge's model.

    Raises what loading raises, DataError where the files can't be compared, UsageError where the folder holds another
    comparison, ModelError where the judge's logits are not numbers, and Interrupted on Ctrl-C: verdicts are kept.
    """
    template = load_template(config.judge_template)
    a, b = _with_questions(config, read_answers(Path(config.a)), read_answers(Path(config.b)))
    if a.name == b.name:
        a, b = replace(a, name=f"{a.name} (A)"), replace(b, name=f"{b.name} (B)")
    todo = matches(a, b, common=config.common)
    kept = list(dict.fromkeys(match.question for match in todo))[: config.limit]
    todo = [match for match in todo if match.question in set(kept)]
    judge = Judge.load(config.annotate, template, engine, tokenizer)
    out = Path(config.out) if config.out else Path("judgments") / _folder_name(a, b)
    with RowLog.open(out, _run(a, b, judge), instead="pass another --out, or remove that folder") as log:
        resumed = sum(match.key in log.rows for match in todo)
        try:
            _judge(judge, todo, log, on_progress)
        except KeyboardInterrupt:
            done = sum(match.key in log.rows for match in todo)
            raise Interrupted(
                f"stopped; {done} of {len(todo)} verdicts are kept in {out}: run the same command again to go on"
            ) from None
        verdicts = [_verdict(match, log.rows[match.key]) for match in todo]
        result = JudgeResult(
            a=a.name,
            b=b.name,
            format=a.format,
            judge=config.model,
            comparison=compare(verdicts, Bootstrap(seed=config.seed)),
            questions=len(kept),
            left_out=len({*a.given, *b.given}) - len(kept),
            resumed=resumed,
            out=out,
        )
        write_file(out / RESULT_FILE, (json.dumps(result.plain(), indent=2) + "\n").encode())
    return result


def _with_questions(config: JudgeConfig, a: AnswerSet, b: AnswerSet) -> tuple[AnswerSet, AnswerSet]:
    """Both sets with the questions' texts, from the file or the hub where the answers lack them."""
    if a.format != b.format or not (config.questions or a.needs_questions):
        return a, b
    benchmark = a.format.removesuffix("_legacy")
    version = "legacy" if a.format == "arena_hard_legacy" else ""
    file = Path(config.questions).expanduser() if config.questions else find_questions(benchmark, version)
    known = read_questions(file, benchmark)
    return a.with_questions(known), b.with_questions(known)


def _run(a: AnswerSet, b: AnswerSet, judge: Judge) -> dict[str, Any]:
    """All that decides the verdicts."""
    recipe = judge.recipe
    return {
        "a": f"{a.name}, {a.digest}",
        "b": f"{b.name}, {b.digest}",
        "judge": recipe.judge_model,
        "judge revision": recipe.judge_revision,
        "dtype": recipe.dtype,
        "judge prompt": recipe.chat_template_hash,
        "max length": recipe.max_length,
    }


def _judge(judge: Judge, todo: Sequence[Match], log: RowLog, on_progress: Callable[[int, int], None]) -> None:
    """Verdicts for what has none, window by window into the log."""
    waiting = [match for match in todo if match.key not in log.rows]
    done = len(todo) - len(waiting)
    on_progress(done, len(todo))
    for window in _windows(judge, waiting):
        prompts = [prompt for _, both in window for prompt in both or ()]
        readings = iter(judge.engine.read(prompts, judge.layers[-1:], judge.verdict_ids))
        rows = []
        for match, both in window:
            row: dict[str, Any] = {"key": match.key, "judged": both is not None}
            if both is None:
                row |= dict.fromkeys(("first", "second"), _by_emptiness(match))
            else:
                first, second = (_preference(next(readings)) for _ in both)
                row |= {"first": first, "second": 1.0 - second}
                row["truncated"] = both[0].truncated or both[1].truncated
            rows.append(row)
        log.append(rows)
        done += len(rows)
        on_progress(done, len(todo))


def _preference(reading: Reading) -> float:
    """The probability that the answer shown first is better. Raises ModelError."""
    assert reading.verdict_logits is not None
    if not all(map(math.isfinite, reading.verdict_logits)):
        raise ModelError("the judge's logits are not numbers; try --dtype float32 or bfloat16")
    return verdict_probability(*reading.verdict_logits)


Window = list[tuple[Match, tuple[JudgePrompt, JudgePrompt] | None]]


def _windows(judge: Judge, waiting: Sequence[Match]) -> Iterator[Window]:
    """Matches with their prompts in both orders, None where an answer is empty; as many as the engine wants at once."""
    window: Window = []
    tokens = 0
    for match in waiting:
        both = None
        if all(answer.strip() for answer in match.answers):
            pair = match.pair(judge.builder)
            try:
                both = judge.builder.build(pair, "cr"), judge.builder.build(pair, "rc")
            except PromptError as error:
                raise DataError(f"turn {match.turn} of question {match.question} cannot be judged: {error}") from None
            tokens += sum(len(prompt.ids) for prompt in both)
        window.append((match, both))
        if len(window) >= _WINDOW and tokens >= judge.engine.window_tokens:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _by_emptiness(match: Match) -> float:
    """An empty answer loses against one that is not."""
    a, b = (bool(answer.strip()) for answer in match.answers)
    return 0.5 if a == b else float(a)


def _verdict(match: Match, row: dict[str, Any]) -> Verdict:
    return Verdict(
        question=match.question,
        turn=match.turn,
        category=match.category,
        first=row["first"],
        second=row["second"],
        truncated=row.get("truncated", False),
        judged=row["judged"],
        characters_a=len(match.answers[0]),
        characters_b=len(match.answers[1]),
    )


def _folder_name(a: AnswerSet, b: AnswerSet) -> str:
    names = [re.sub(r"[^\w.+-]+", "-", one.name).strip("-") for one in (a, b)]
    return f"{a.format}-{names[0]}_vs_{names[1]}"
