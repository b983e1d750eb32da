"""What follows from the runs: where each arm stands at each beta, and how it differs from the baseline.

Every figure is a mean over seeds, with an interval from drawing pairs and seeds with replacement, the same draws for
all arms: differences are paired. A policy that has moved further from the reference has had more chance to learn, so
that two arms are compared fairly where they are equally far from it: `at_equal_kl` does that along whole frontiers.

Shapes: A arms, B betas, S seeds, N pairs, R resamples, X of either. Not for: what was measured (`figures.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """Every metric over the runs: `value` as measured [A, B], `drawn` over resamples [R, A, B]."""

    value: Floats
    drawn: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frontier:
    """What a comparison found; keys are (arm, beta), or the arm.

    points: each metric. differences: each metric less the baseline's at the same beta. at_equal_kl: each metric's
    difference from the baseline's frontier, mean over the KL that both reach; NaN where they have none in common.
    """

    points: Mapping[tuple[str, float], Mapping[str, Estimate]]
    differences: Mapping[tuple[str, float], Mapping[str, Estimate]]
    at_equal_kl: Mapping[str, Mapping[str, Estimate]]


def frontier(
    runs: Mapping[tuple[str, float, int], PairFigures],
    baseline: str,
    *,
    rewards: Mapping[tuple[str, float, int], Sequence[float]] | None = None,
    resamples: int,
    seed: int = 0,
) -> Frontier:
    """The frontier of complete runs: (arm, beta, seed) → figures of the same pairs, each arm at each beta and seed.

    rewards: of the same runs, an entry a pair. Raises ValueError where runs are missing or of other pairs.
    """
    arms = _unique(arm for arm, _, _ in runs)
    betas = _unique(beta for _, beta, _ in runs)
    seeds = _unique(each for _, _, each in runs)
    grid = [[[runs.get((arm, beta, each)) for each in seeds] for beta in betas] for arm in arms]
    figures = [each for rows in grid for row in rows for each in row if each is not None]
    if len(figures) != len(arms) * len(betas) * len(seeds):
        raise ValueError("every arm needs a run at every beta and seed")
    if any(each.hashes != figures[0].hashes for each in figures):
        raise ValueError("all runs must be measured on the same pairs")
    shape = (len(arms), len(betas), len(seeds))
    scored = [np.asarray(rewards[key]) for key in itertools.product(arms, betas, seeds)] if rewards else []
    metrics = _metrics(figures, scored, shape, resamples, np.random.default_rng(seed))
    count, base = len(figures[0]), arms.index(baseline)
    keys = [(a, b) for a in range(len(arms)) for b in range(len(betas))]
    return Frontier(
        points={
            (arms[a], betas[b]): {
                name: _estimate(m.value[a, b], m.drawn[:, a, b], count) for name, m in metrics.items()
            }
            for a, b in keys
        },
        differences={
            (arms[a], betas[b]): {
                name: _estimate(m.value[a, b] - m.value[base, b], m.drawn[:, a, b] - m.drawn[:, base, b], count)
                for name, m in metrics.items()
            }
            for a, b in keys
            if a != base
        },
        at_equal_kl={
            arm: {name: _at_equal_kl(metrics[KL], m, a, base, count) for name, m in metrics.items() if name != KL}
            for a, arm in enumerate(arms)
            if a != base
        },
    )


def _metrics(
    figures: Sequence[PairFigures],
    rewards: Sequence[Floats],
    shape: tuple[int, int, int],
    resamples: int,
    rng: np.random.Generator,
) -> dict[str, Draws]:
    """Each metric over the runs, as measured and drawn."""
    count, seeds = len(figures[0]), shape[2]
    pairs_RN = rng.multinomial(count, np.full(count, 1 / count), resamples).astype(np.float64)
    seeds_RS = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    every_N, every_S = np.ones((1, count)), np.full((1, seeds), 1 / seeds)

    def ratio(tops: Sequence[Floats], bottoms: Sequence[Floats]) -> Draws:
        """Sum over sum, over the pairs that were drawn; then the mean over the seeds that were."""

        def over(pairs_XN: Floats, seeds_XS: Floats) -> Floats:
            top, bottom = (pairs_XN @ np.stack(columns).T for columns in (tops, bottoms))
            # A resample may hold no pair of a stratum.
            each = np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
            found: Floats = np.einsum("xabs,xs->xab", each.reshape(-1, *shape), seeds_XS)
            return found

        return Draws(value=over(every_N, every_S)[0], drawn=over(pairs_RN, seeds_RS))

    ones = [np.ones(count)] * len(figures)
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


def _at_equal_kl(kl: Draws, metric: Draws, arm: int, base: int, count: int) -> Estimate:
    """The mean difference of two frontiers over the KL that both reach."""
    low = max(kl.value[arm].min(), kl.value[base].min())
    high = min(kl.value[arm].max(), kl.value[base].max())
    if not 0 < low < high:
        return Estimate(value=np.nan, low=np.nan, high=np.nan, count=count)
    grid = np.linspace(np.log(low), np.log(high), _GRID)

    def difference(kl_AB: Floats, metric_AB: Floats) -> float:
        ours, theirs = (_along(grid, kl_AB[each], metric_AB[each]) for each in (arm, base))
        return float(np.mean(ours - theirs))

    drawn = np.array([difference(k, m) for k, m in zip(kl.drawn, metric.drawn, strict=True)])
    return _estimate(difference(kl.value, metric.value), drawn, count)


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
