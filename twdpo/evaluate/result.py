"""What an evaluation hands back: as JSON, and as a table's rows. Not for: measuring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twdpo import __version__
from twdpo.evaluate.figures import PairFigures
from twdpo.evaluate.statistics import Bootstrap, Estimate

FILE = "eval.json"
_FORMAT = 1
#: Only length-controlled figures can be missing.
_NONE = "–  (one of the two is the longer answer in every pair)"

#: Metrics in a table, in their order: name → (label, form of a number).
_SHOWN = {
    "accuracy": ("accuracy", "{:.1%}"),
    "weighted_accuracy": ("accuracy, weighted", "{:.1%}"),
    "length_controlled_accuracy": ("accuracy, length-controlled", "{:.1%}"),
    "weighted_length_controlled_accuracy": ("accuracy, weighted and length-controlled", "{:.1%}"),
    "margin": ("margin, nats", "{:+.4g}"),
    "weighted_margin": ("margin, weighted, nats", "{:+.4g}"),
    "reward_margin": ("margin times beta", "{:+.4g}"),
    "weighted_reward_margin": ("margin times beta, weighted", "{:+.4g}"),
    "chosen_log_ratio": ("log-ratio of chosen answers, nats", "{:+.4g}"),
    "rejected_log_ratio": ("log-ratio of rejected answers, nats", "{:+.4g}"),
    "kl_per_token": ("KL per token, nats", "{:.4g}"),
    "kl_per_answer": ("KL per answer, nats", "{:.4g}"),
}
_UNLIKE = {"weights": "cache of weights", "weight_rules": "weighting, so no weighted differences"}
_WHOSE = ("policy", "reference")
_REWARDS = {
    "win_rate": ("win rate", "{:.1%}"),
    "length_controlled_win_rate": ("win rate, length-controlled", "{:.1%}"),
    "reward": ("reward", "{:+.4g}"),
    "reference_reward": ("reward of the reference's answers", "{:+.4g}"),
    "reward_difference": ("difference of rewards", "{:+.4g}"),
    "characters": ("characters an answer", "{:,.0f}"),
    "reference_characters": ("characters an answer of the reference", "{:,.0f}"),
    "kl_per_token_sampled": ("KL per token of own answers, nats", "{:.4g}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardResult:
    """Win rates by a reward model. answers: what was sampled, and its rewards.

    cut, empty: how many answers of policy and reference reached the most tokens, or have not a character.
    """

    model: str
    metrics: Mapping[str, Estimate]
    answers: Sequence[Mapping[str, Any]]
    cut: tuple[int, int]
    empty: tuple[int, int]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        counts = {name: dict(zip(_WHOSE, getattr(self, name), strict=True)) for name in ("cut", "empty")}
        return {"model": self.model, "metrics": _plain(self.metrics), **counts, "answers": list(self.answers)}

    def rows(self) -> dict[str, str]:
        """As a table shows it."""
        rows = {"reward model": self.model}
        for what, (ours, theirs) in (("cut at the most tokens", self.cut), ("empty", self.empty)):
            if ours or theirs:
                count = len(self.answers)
                rows[f"answers {what}"] = f"{ours:,} of {count:,}, and {theirs:,} of the reference's"
        rows |= _shown(self.metrics, _REWARDS)
        kl = self.metrics.get("kl_per_token_sampled")
        if kl is not None and kl.count < len(self.answers):
            rows[_REWARDS["kl_per_token_sampled"][0]] += f"  over {kl.count:,} of {len(self.answers):,} answers"
        return rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EvalResult:
    """What an evaluation found.

    data: which pairs, in words. metrics: each with its interval; see docs/evaluation.md. figures: pair by pair.
    trained_pairs, trained_prompts: how many of the pairs were also trained on, and how many others have a prompt of
    such a pair; None where that is not known. beta: of the rewards, if any. weight_rules: whose attention the weights
    are and how they were read, None without weights. differences: from the evaluation `against`, pair by pair. unlike:
    what differs from it beside the model, name → there and here. truncated: pairs cut to the maximal length. out: the
    file that holds all of it.
    """

    model: str
    reference: str
    data: str
    figures: PairFigures
    metrics: Mapping[str, Estimate]
    bootstrap: Bootstrap
    beta: float | None = None
    weights: str | None = None
    weight_rules: Mapping[str, Any] | None = None
    max_length: int = 0
    dtype: str = "float32"
    trained_pairs: int | None = None
    trained_prompts: int | None = None
    truncated: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    against: str | None = None
    differences: Mapping[str, Estimate] = field(default_factory=dict)
    unlike: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rewards: RewardResult | None = None
    out: Path | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        names = ("model", "reference", "data", "beta", "weights", "max_length", "dtype", "truncated", "against")
        return {
            "format": _FORMAT,
            "twdpo_version": __version__,
            **{name: getattr(self, name) for name in names},
            "weight_rules": None if self.weight_rules is None else dict(self.weight_rules),
            "pairs": len(self.figures),
            "trained_on": {"pairs": self.trained_pairs, "prompts": self.trained_prompts},
            "skipped": dict(self.skipped),
            "bootstrap": {name: getattr(self.bootstrap, name) for name in ("resamples", "level", "seed")},
            "metrics": _plain(self.metrics),
            "differences": _plain(self.differences),
            "unlike": {name: {"there": there, "here": here} for name, (there, here) in self.unlike.items()},
            "reward_model": None if self.rewards is None else self.rewards.plain(),
            "per_pair": self.figures.plain(),
        }

    def rows(self) -> dict[str, Any]:
        """As a table shows it: names, which are unique, and values."""
        rows: dict[str, Any] = {
            "policy": self.model,
            "reference": self.reference,
            "pairs": f"{len(self.figures):,}, {self.data}"
            + (f" ({self.truncated:,} cut to the maximal length)" if self.truncated else ""),
            "trained on": self._trained(),
        }
        for reason, count in sorted(self.skipped.items(), key=lambda item: -item[1]):
            rows[f"left out {count:,} ×"] = reason
        rows["interval"] = f"{self.bootstrap.level:.0%} of {self.bootstrap.resamples:,} bootstrap resamples of pairs"
        rows |= _shown(self.metrics, _SHOWN)
        if self.differences:
            rows[f"less {self.against}"] = "the same pairs, differences pair by pair"
            for name, (there, here) in self.unlike.items():
                rows[f"another {_UNLIKE.get(name, name)}"] = f"{there} there, {here} here"
            rows |= _shown(self.differences, _SHOWN, "difference: ", signed=True)
        if self.rewards is not None:
            rows |= self.rewards.rows()
        if self.out is not None:
            rows["all of it"] = str(self.out)
        return rows

    def _trained(self) -> str:
        if self.trained_pairs is None:
            return "not known"
        if not self.trained_pairs:
            return "none of them" + (
                f", but {self.trained_prompts:,} have the prompt of a pair that was" if self.trained_prompts else ""
            )
        more = f"; {self.trained_prompts:,} others share a prompt with one that was" if self.trained_prompts else ""
        return f"{self.trained_pairs:,} OF THESE PAIRS WERE TRAINED ON{more}: figures are no held-out ones"


def _plain(metrics: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.plain() for name, estimate in metrics.items()}


def _shown(
    metrics: Mapping[str, Estimate], labels: Mapping[str, tuple[str, str]], prefix: str = "", *, signed: bool = False
) -> dict[str, str]:
    """Labels and figures with their intervals, in the labels' order."""
    rows: dict[str, str] = {}
    for name, (label, form) in labels.items():
        if (estimate := metrics.get(name)) is not None:
            shown = form.replace("{:.", "{:+.") if signed else form
            interval = f"[{shown.format(estimate.low)}, {shown.format(estimate.high)}]"
            known = math.isfinite(estimate.value)
            rows[prefix + label] = f"{shown.format(estimate.value)}  {interval}" if known else _NONE
    return rows
