"""The commands `twdpo generate` and `twdpo judge`: parse arguments, call one function each, print. No logic."""

from __future__ import annotations

import json

from twdpo.evaluate.benchmarks.config import HELP as GENERATE_HELP
from twdpo.evaluate.benchmarks.config import GenerateConfig
from twdpo.evaluate.judging.config import HELP as JUDGE_HELP
from twdpo.evaluate.judging.config import JudgeConfig
from twdpo.options import configured, json_object


@configured(GenerateConfig, GENERATE_HELP, {"chat_template_kwargs": json_object})
def generate(config: GenerateConfig) -> None:
    """Answer the questions of AlpacaEval 2, MT-Bench or Arena-Hard, in the file that its official tool reads.

    Run the same command again to go on after an interruption: answers are kept as they come. The official file is
    written when every question has an answer; at the end stands the command that judges it.
    """
    from twdpo import console
    from twdpo.evaluate.benchmarks import run, summary
    from twdpo.results import table

    with console.pacing("loading the model", "answered") as show:
        result = run.generate_answers(
            config, on_progress=lambda now: show(now.answered, now.total, summary.rate(now.tokens, now.seconds))
        )
    out = console.stdout()
    out.print(table(summary.generate_rows(result)))
    for line in summary.next_lines(result):
        out.print(line, soft_wrap=True, markup=False)


@configured(JudgeConfig, JUDGE_HELP, {"chat_template_kwargs": json_object}, positional=("a", "b"))
def judge(config: JudgeConfig) -> None:
    """Compare two models' answers to a benchmark with a judge on this machine: no API key, no leaderboard.

    Each pair of answers is judged in both orders, as stage one does; where the orders disagree it is a tie. Run the
    same command again to go on after an interruption: verdicts are kept as they come.
    """
    from twdpo import console
    from twdpo.evaluate.judging import run, summary
    from twdpo.results import table

    with console.pacing("loading the judge", "judged") as show:
        result = run.judge_answers(config, on_progress=lambda done, total: show(done, total, ""))
    out = console.stdout()
    if config.json:
        out.print_json(json.dumps(result.plain()), ensure_ascii=True)
    else:
        out.print(table(summary.judge_rows(result)))
