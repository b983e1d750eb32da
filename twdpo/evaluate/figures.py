"""What was measured of a policy on held-out pairs, one entry a pair, and the metrics of it with their intervals.

Not for: measuring (`heldout.py`). This needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from twdpo.evaluate.statistics import (
    Bootstrap,
    Estimate,
    Floats,
    Statistic,
    accuracy_longer,
    accuracy_shorter,
    is_longer,
    is_right,
    length_controlled,
    mean,
    ratio,
)

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairFigures:
    """What was measured, one entry a pair in the order of the examples; sums over an answer's tokens, in nats.

    chosen_ratios: Σ ℓ, weighted_*: Σ w ℓ, *_kl: Σ_t KL(π ‖ π_ref) at the answer's own prefixes; *_logps: Σ log π.
    *_tokens: trained-on tokens, end of turn included, cut at the maximal length. *_characters: of the whole answer.
    None: not measured.
    """

    hashes: tuple[str, ...]
    chosen_ratios: Floats
    rejected_ratios: Floats
    chosen_logps: Floats
    rejected_logps: Floats
    chosen_tokens: Integers
    rejected_tokens: Integers
    weighted_chosen_ratios: Floats | None = None
    weighted_rejected_ratios: Floats | None = None
    chosen_kl: Floats | None = None
    rejected_kl: Floats | None = None
    chosen_characters: Integers | None = None
    rejected_characters: Integers | None = None

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def margins(self) -> Floats:
        """Σ ℓ⁺ − Σ ℓ⁻: what the policy has come to prefer the chosen answer by."""
        return self.chosen_ratios - self.rejected_ratios

    @property
    def weighted_margins(self) -> Floats | None:
        """Σ w⁺ ℓ⁺ − Σ w⁻ ℓ⁻: what training by the weights raises."""
        if self.weighted_chosen_ratios is None or self.weighted_rejected_ratios is None:
            return None
        return self.weighted_chosen_ratios - self.weighted_rejected_ratios

    @property
    def tokens(self) -> Integers:
        """Of both answers."""
        return self.chosen_tokens + self.rejected_tokens

    @property
    def kl(self) -> Floats | None:
        """The KL of both answers' tokens, summed."""
        return None if self.chosen_kl is None or self.rejected_kl is None else self.chosen_kl + self.rejected_kl

    @property
    def kl_per_token(self) -> Floats | None:
        """The mean over a pair's tokens."""
        return None if self.kl is None else self.kl / self.tokens

    @property
    def broken(self) -> int:
        """Pairs of which a figure is no number."""
        found = np.zeros(len(self), np.bool_)
        for field in fields(self):
            column = getattr(self, field.name)
            if field.name != "hashes" and column is not None:
                found |= ~np.isfinite(column)
        return int(found.sum())

    @property
    def longer(self) -> Floats:
        """1 where the chosen answer has more tokens, ½ where both have as many."""
        return is_longer(self.chosen_tokens, self.rejected_tokens)

    def plain(self) -> dict[str, Any]:
        """As JSON has it: columns by their names, without those that were not measured."""
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(c) if name == "hashes" else c.tolist() for name, c in columns.items() if c is not None}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Undo `plain`. Raises KeyError, TypeError or ValueError for what it did not give."""
        columns: dict[str, Any] = {"hashes": tuple(map(str, plain["hashes"]))}
        for name, values in plain.items():
            if name != "hashes":
                kind = np.int64 if name.endswith(("_tokens", "_characters")) else np.float64
                columns[name] = np.array(values, kind)
                if columns[name].shape != (len(columns["hashes"]),):
                    raise ValueError(f"{name} is not one number a pair")
        return cls(**columns)

    def select(self, places: Sequence[int]) -> PairFigures:
        """The entries at these places, in their order."""
        changes: dict[str, Any] = {"hashes": tuple(self.hashes[i] for i in places)}
        for field in fields(self):
            column = getattr(self, field.name)
            if field.name != "hashes" and column is not None:
                changes[field.name] = column[list(places)]
        return replace(self, **changes)

    @classmethod
    def concatenate(cls, parts: Sequence[PairFigures]) -> PairFigures:
        """Several one after another."""
        columns: dict[str, Any] = {"hashes": tuple(key for part in parts for key in part.hashes)}
        for field in fields(cls):
            found = [getattr(part, field.name) for part in parts]
            if field.name != "hashes":
                columns[field.name] = None if any(column is None for column in found) else np.concatenate(found)
        return cls(**columns)


def summarize(figures: PairFigures, *, beta: float | None, bootstrap: Bootstrap | None = None) -> dict[str, Estimate]:
    """Every metric of the figures with its interval; see docs/evaluation.md for their formulas.

    beta: of the rewards, None to leave these out.
    """
    bootstrap = bootstrap or Bootstrap()
    return {
        name: bootstrap.estimate(statistic, *columns) for name, (statistic, columns) in _metrics(figures, beta).items()
    }


def differences(
    here: PairFigures,
    there: PairFigures,
    *,
    beta: tuple[float | None, float | None],
    bootstrap: Bootstrap | None = None,
) -> dict[str, Estimate]:
    """Every metric of `here` less that of `there`, of the same pairs in the same order: paired.

    beta: of each; without both no rewards are compared. Raises ValueError for other pairs.
    """
    if here.hashes != there.hashes:
        raise ValueError("paired differences need the same pairs in the same order")
    bootstrap = bootstrap or Bootstrap()
    ours, theirs = _metrics(here, beta[0]), _metrics(there, beta[1])
    return {
        name: bootstrap.difference(statistic, columns, theirs[name][1])
        for name, (statistic, columns) in ours.items()
        if name in theirs
    }


def _metrics(figures: PairFigures, beta: float | None) -> dict[str, tuple[Statistic, list[Any]]]:
    """Name → statistic and its columns."""
    longer = figures.longer
    metrics: dict[str, tuple[Statistic, list[Any]]] = {}
    for prefix, margins in (("", figures.margins), ("weighted_", figures.weighted_margins)):
        if margins is None:
            continue
        right = is_right(margins)
        metrics |= {
            f"{prefix}accuracy": (mean, [right]),
            f"{prefix}length_controlled_accuracy": (length_controlled, [right, longer]),
            f"{prefix}accuracy_chosen_longer": (accuracy_longer, [right, longer]),
            f"{prefix}accuracy_chosen_shorter": (accuracy_shorter, [right, longer]),
            f"{prefix}margin": (mean, [margins]),
        }
        if beta is not None:
            metrics[f"{prefix}reward_margin"] = (mean, [beta * margins])
    metrics["chosen_log_ratio"] = (mean, [figures.chosen_ratios])
    metrics["rejected_log_ratio"] = (mean, [figures.rejected_ratios])
    if figures.kl is not None and figures.chosen_kl is not None and figures.rejected_kl is not None:
        metrics |= {
            "kl_per_token": (ratio, [figures.kl, figures.tokens]),
            "kl_per_token_chosen": (ratio, [figures.chosen_kl, figures.chosen_tokens]),
            "kl_per_token_rejected": (ratio, [figures.rejected_kl, figures.rejected_tokens]),
            "kl_per_answer": (mean, [figures.kl / 2]),
        }
    return metrics
