"""What two verdicts on two answers mean, and what many of them come to. Pure functions.

Not for: getting verdicts (`run.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twdpo.evaluate.statistics import Bootstrap, Estimate, ratio

#: What the judge's two verdicts come to.
WIN, TIE, LOSS = 1.0, 0.5, 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The judge on one turn of one question.

    first, second: its probability that A is better, with A shown first and shown second. judged: whether it was asked;
    an empty answer loses without it. characters_a, characters_b: of the answers.
    """

    question: str
    turn: int
    category: str
    first: float
    second: float
    truncated: bool
    judged: bool
    characters_a: int
    characters_b: int

    @property
    def score(self) -> float:
        """1 where A wins in both orders, 0 where B does, ½ where the orders disagree or one is even."""
        if self.first > 0.5 and self.second > 0.5:
            return WIN
        return LOSS if self.first < 0.5 and self.second < 0.5 else TIE

    @property
    def disagree(self) -> bool:
        """Whether the two orders name different answers."""
        return (self.first - 0.5) * (self.second - 0.5) < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts and the win rate of A over some verdicts.

    win_rate: wins and half the ties over all, with a bootstrap interval over questions. probability: mean probability
    that A is better, over both orders, which knows no ties.
    """

    verdicts: int
    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    probability: Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All verdicts of two files. Shares are over the verdicts that the judge was asked for, NaN where there are none.

    disagreement: share of pairs whose orders name different answers: those ties are the judge's position bias, or its
    doubt. first_preferred: share of all readings that prefer the answer shown first, ½ without position bias.
    """

    overall: Tally
    turns: dict[str, Tally]
    categories: dict[str, Tally]
    disagreement: float
    first_preferred: float
    truncated: int
    empty: int
    mean_characters_a: float
    mean_characters_b: float

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what is not there is null."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def compare(verdicts: Sequence[Verdict], bootstrap: Bootstrap) -> Comparison:
    """What the verdicts come to, at least one."""
    judged = [verdict for verdict in verdicts if verdict.judged]
    count = len(judged) or math.nan
    readings = sum((v.first > 0.5) + (v.first == 0.5) / 2 + (v.second < 0.5) + (v.second == 0.5) / 2 for v in judged)
    return Comparison(
        overall=tally(verdicts, bootstrap),
        turns=_grouped(verdicts, lambda verdict: str(verdict.turn), bootstrap),
        categories=_grouped(verdicts, lambda verdict: verdict.category, bootstrap),
        disagreement=sum(verdict.disagree for verdict in judged) / count,
        first_preferred=readings / (2 * count),
        truncated=sum(verdict.truncated for verdict in judged),
        empty=len(verdicts) - len(judged),
        mean_characters_a=sum(verdict.characters_a for verdict in verdicts) / len(verdicts),
        mean_characters_b=sum(verdict.characters_b for verdict in verdicts) / len(verdicts),
    )


def tally(verdicts: Sequence[Verdict], bootstrap: Bootstrap) -> Tally:
    """Counts and rates; the bootstrap draws whole questions, since their turns are not independent."""
    questions = {verdict.question: i for i, verdict in enumerate({v.question: v for v in verdicts}.values())}
    scores, chances, counts = (np.zeros(len(questions)) for _ in range(3))
    for verdict in verdicts:
        place = questions[verdict.question]
        scores[place] += verdict.score
        chances[place] += (verdict.first + verdict.second) / 2
        counts[place] += 1
    all_scores = [verdict.score for verdict in verdicts]
    return Tally(
        verdicts=len(verdicts),
        wins=all_scores.count(WIN),
        ties=all_scores.count(TIE),
        losses=all_scores.count(LOSS),
        win_rate=bootstrap.estimate(ratio, scores, counts),
        probability=bootstrap.estimate(ratio, chances, counts),
    )


def _grouped(verdicts: Sequence[Verdict], kind: Callable[[Verdict], str], bootstrap: Bootstrap) -> dict[str, Tally]:
    """A tally a kind, where there are several kinds."""
    kinds = list(dict.fromkeys(map(kind, verdicts)))
    if len(kinds) < 2:
        return {}
    return {name: tally([v for v in verdicts if kind(v) == name], bootstrap) for name in kinds}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
