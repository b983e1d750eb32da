"""What follows from the runs: where each arm stands at each beta, and how it differs from the baseline.

Every figure is a mean over seeds, with an interval from drawing prompts and seeds with replacement, the same draws for
all arms: differences are paired. A policy that has moved further from the reference has had more chance to learn, so
that two arms are compared fairly where they are equally far from it: `at_equal_kl` does that along whole frontiers.

Shapes: B betas of an arm, S seeds, N pairs, R resamples, X of either. Not for: what was measured (`figures.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from twdpo.evaluate.figures import PairFigures
from twdpo.evaluate.statistics import LEVEL, Estimate, Floats, is_right

Key = TypeVar("Key")

#: The frontier's abscissa; and what there is only with a reward model.
KL, REWARD = "kl_per_token", "reward"
#: Points at which two frontiers are compared, evenly spread over the logarithm of the KL that both reach.
_GRID = 25


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draws:
    """A metric of an arm at its betas: `value` as measured [B], `drawn` over resamples [R, B]."""

    value: Floats
    drawn: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """What a comparison found; keys are (arm, beta), or the arm.

    points: each metric. differences: each metric less the baseline's at the same beta. at_equal_kl: each metric's
    difference from the baseline's frontier, mean over the KL that both reach; NaN where they have none in common.
    less_controls: the same from each control's frontier, (arm, control) → metrics.
    """

    points: Mapping[tuple[str, float], Mapping[str, Estimate]]
    differences: Mapping[tuple[str, float], Mapping[str, Estimate]]
    at_equal_kl: Mapping[str, Mapping[str, Estimate]]
    less_controls: Mapping[tuple[str, str], Mapping[str, Estimate]] = field(default_factory=dict)


def frontier(
    runs: Mapping[tuple[str, float, int], PairFigures],
    baseline: str,
    *,
    prompts: Sequence[int] | None = None,
    rewards: Mapping[tuple[str, float, int], Sequence[float]] | None = None,
    apart: Collection[str] = (),
    controls: Sequence[str] = (),
    resamples: int,
    seed: int = 0,
) -> Frontier:
    """The frontier of complete runs: (arm, beta, seed) → figures of the same pairs, all seeds at each beta of an arm.

    prompts: a number a pair, the same where the prompt is the same, None where no two share one. rewards: of the same
    runs, an entry a pair. apart: arms whose beta means another thing than the baseline's. controls: arms that the
    others but the baseline are also compared with. Raises ValueError where runs are missing or of other pairs.
    """
    betas = {arm: _unique(beta for each, beta, _ in runs if each == arm) for arm in _unique(arm for arm, _, _ in runs)}
    seeds = _unique(each for _, _, each in runs)
    first = next(iter(runs.values()))
    if len(runs) != len(seeds) * sum(map(len, betas.values())):
        raise ValueError("every arm needs a run at each of its betas and every seed")
    if any(each.hashes != first.hashes for each in runs.values()):
        raise ValueError("all runs must be measured on the same pairs")
    groups = range(len(first)) if prompts is None else prompts
    sampling = Sampling.draw(groups, len(seeds), resamples, np.random.default_rng(seed))
    metrics: dict[str, dict[str, Draws]] = {}
    for arm in betas:
        keys = list(itertools.product([arm], betas[arm], seeds))
        scored = [np.asarray(rewards[key]) for key in keys] if rewards else []
        metrics[arm] = _metrics([runs[key] for key in keys], scored, sampling)
    base, count = metrics[baseline], len(first)
    return Frontier(
        points={
            (arm, beta): {name: _estimate(m.value[b], m.drawn[:, b], count) for name, m in metrics[arm].items()}
            for arm in betas
            for b, beta in enumerate(betas[arm])
        },
        differences={
            (arm, beta): {
                name: _estimate(m.value[b] - base[name].value[o], m.drawn[:, b] - base[name].drawn[:, o], count)
                for name, m in metrics[arm].items()
            }
            for arm in betas
            for b, beta in enumerate(betas[arm])
            for o, other in enumerate(betas[baseline])
            if arm != baseline and beta == other and arm not in apart
        },
        at_equal_kl={
            arm: {name: _at_equal_kl(metrics[arm], base, name, count) for name in metrics[arm] if name != KL}
            for arm in betas
            if arm != baseline
        },
        less_controls={
            (arm, control): {
                name: _at_equal_kl(metrics[arm], metrics[control], name, count) for name in metrics[arm] if name != KL
            }
            for control in controls
            for arm in betas
            if arm not in controls and arm != baseline
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampling:
    """Resamples of pairs and seeds, the same for all arms: how often each pair [R, N], what part each seed [R, S].

    Pairs of one prompt are drawn together: they tell much the same, and a reward is of the prompt's one answer.
    """

    pairs_RN: Floats
    seeds_RS: Floats

    @classmethod
    def draw(cls, groups: Sequence[int], seeds: int, resamples: int, rng: np.random.Generator) -> Sampling:
        """Draw groups of pairs, and seeds, with replacement; groups: from 0 on, one a pair."""
        count = max(groups) + 1
        drawn_RG = rng.multinomial(count, np.full(count, 1 / count), resamples)
        pairs_RN = drawn_RG[:, list(groups)].astype(np.float64)
        return cls(pairs_RN=pairs_RN, seeds_RS=rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds)

    def ratio(self, tops: Sequence[Floats], bottoms: Sequence[Floats]) -> Draws:
        """Sum over sum, over the pairs that were drawn; then the mean over the seeds that were.

        tops, bottoms: [N] for each run, betas × seeds of them.
        """
        seeds = self.seeds_RS.shape[1]

        def over(pairs_XN: Floats, seeds_XS: Floats) -> Floats:
            top, bottom = (pairs_XN @ np.stack(columns).T for columns in (tops, bottoms))
            # A resample may hold no pair of a stratum.
            each = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
            found: Floats = np.einsum("xbs,xs->xb", each.reshape(len(each), -1, seeds), seeds_XS)
            return found

        every_N, every_S = np.ones((1, self.pairs_RN.shape[1])), np.full((1, seeds), 1 / seeds)
        return Draws(value=over(every_N, every_S)[0], drawn=over(self.pairs_RN, self.seeds_RS))


def _metrics(figures: Sequence[PairFigures], rewards: Sequence[Floats], sampling: Sampling) -> dict[str, Draws]:
    """Each metric of an arm, as measured and drawn; figures, rewards: of its runs, betas × seeds."""
    ratio = sampling.ratio
    ones = [np.ones(len(figures[0]))] * len(figures)
    right = [is_right(each.margins) for each in figures]
    longer = [each.longer for each in figures]
    shorter = [1.0 - each for each in longer]
    strata = [ratio([r * s for r, s in zip(right, stratum, strict=True)], stratum) for stratum in (longer, shorter)]
    found = {
        "accuracy": ratio(right, ones),
        "length_controlled_accuracy": Draws(
            value=(strata[0].value + strata[1].value) / 2, drawn=(strata[0].drawn + strata[1].drawn) / 2
        ),
        "margin": ratio([each.margins for each in figures], ones),
    }
    if rewards:
        found[REWARD] = ratio(rewards, ones)
    kls = [each.kl for each in figures]
    known = [kl for kl in kls if kl is not None]
    if len(known) < len(kls):
        raise ValueError("a run was measured without its KL")
    return {KL: ratio(known, [each.tokens.astype(np.float64) for each in figures]), **found}


def _at_equal_kl(arm: Mapping[str, Draws], base: Mapping[str, Draws], name: str, count: int) -> Estimate:
    """The mean difference of two frontiers over the KL that both reach."""
    low = max(arm[KL].value.min(), base[KL].value.min())
    high = min(arm[KL].value.max(), base[KL].value.max())
    if not 0 < low < high:
        return Estimate(value=np.nan, low=np.nan, high=np.nan, count=count)
    grid = np.linspace(np.log(low), np.log(high), _GRID)
    value = np.mean(_along(grid, arm[KL].value, arm[name].value) - _along(grid, base[KL].value, base[name].value))
    drawn = [
        np.mean(_along(grid, *ours) - _along(grid, *theirs))
        for ours, theirs in zip(
            zip(arm[KL].drawn, arm[name].drawn, strict=True),
            zip(base[KL].drawn, base[name].drawn, strict=True),
            strict=True,
        )
    ]
    return _estimate(float(value), np.array(drawn), count)


def _along(grid: Floats, kl_B: Floats, metric_B: Floats) -> Floats:
    """A frontier at the grid's log KL, straight between its points."""
    x = np.log(np.maximum(kl_B, 1e-300))
    order = np.argsort(x)
    found: Floats = np.interp(grid, x[order], metric_B[order])
    return found


def _estimate(value: float, drawn: Floats, count: int) -> Estimate:
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(known) else (np.nan, np.nan)
    return Estimate(value=float(value), low=float(low), high=float(high), count=count)


def _unique(values: Iterable[Key]) -> list[Key]:
    """Each value once, in the order in which they come."""
    return list(dict.fromkeys(values))
