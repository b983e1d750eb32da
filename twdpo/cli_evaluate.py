"""The command `twdpo eval`: parse arguments, call a function of the library, print what it returns. No logic."""

from __future__ import annotations

import json

from twdpo.evaluate.config import HELP, EvalConfig
from twdpo.options import configured


@configured(EvalConfig, HELP, positional=("model",))
def evaluate(config: EvalConfig) -> None:
    """How good a trained policy is on pairs that it was not trained on.

    Accuracy and margins, plain and weighted, length-controlled accuracy and the KL from the reference, each with a
    bootstrap interval. Of a model that twdpo train wrote, the pairs are those that its run held out.
    """
    from twdpo import console, results
    from twdpo.evaluate import evaluate as run

    with console.train_progress() as progress:
        result = run(config, progress)
    out = console.stdout()
    if config.json:
        out.print_json(json.dumps(result.plain()), ensure_ascii=True)
    else:
        out.print(results.table(result.rows()))
