"""What `twdpo judge` prints of its result. No logic."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twdpo.evaluate.judging.run import JudgeResult
    from twdpo.evaluate.judging.verdicts import Tally
    from twdpo.evaluate.statistics import Estimate


def judge_rows(result: JudgeResult) -> dict[str, Any]:
    """The summary of a comparison."""
    found = result.comparison
    overall = found.overall
    rows: dict[str, Any] = {
        "A": f"{result.a}, {found.mean_characters_a:,.0f} characters an answer",
        "B": f"{result.b}, {found.mean_characters_b:,.0f} characters an answer",
        "judged": f"{overall.verdicts:,} pairs of answers to {result.questions:,} questions of "
        f"{result.format.replace('_', ' ')}, in both orders, by {result.judge}"
        + (f"; {result.resumed:,} were there before" if result.resumed else ""),
    }
    if result.left_out:
        rows["LEFT OUT"] = f"{result.left_out:,} questions: this is no result of the whole benchmark"
    rows |= {
        "A wins, ties, B wins": f"{overall.wins:,}, {overall.ties:,}, {overall.losses:,}",
        "win rate of A": _rate(overall.win_rate),
        "without ties": f"{_rate(overall.probability)}, mean probability",
        "orders disagree": f"{_share(found.disagreement)}; the answer shown first preferred in "
        f"{_share(found.first_preferred)}",
    }
    if found.truncated:
        rows["truncated"] = f"{found.truncated:,} pairs were too long for the judge, and cut"
    if found.empty:
        rows["empty"] = f"{found.empty:,} pairs with an empty answer, which loses unjudged"
    rows |= {f"turn {name}": _line(tally) for name, tally in found.turns.items()}
    rows |= {f"  {name}": _line(tally) for name, tally in found.categories.items()}
    return rows | {"written to": f"{result.out}/"}


def _line(tally: Tally) -> str:
    return f"{_rate(tally.win_rate)}, {tally.wins:,} : {tally.ties:,} : {tally.losses:,}"


def _rate(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
