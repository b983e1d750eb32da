"""Frontiers against plain loops, and cases whose answer is known by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from twdpo.evaluate.compare.frontier import frontier
from twdpo.evaluate.figures import PairFigures

Runs = dict[tuple[str, float, int], PairFigures]


def figures(
    margins: NDArray[np.float64], kl: NDArray[np.float64], tokens: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> PairFigures:
    n = len(margins)
    return PairFigures(
        hashes=tuple(f"{i:032x}" for i in range(n)),
        chosen_ratios=margins + 1.0,
        rejected_ratios=np.ones(n),
        chosen_logps=np.zeros(n),
        rejected_logps=np.zeros(n),
        chosen_tokens=tokens[0],
        rejected_tokens=tokens[1],
        chosen_kl=kl / 4,
        rejected_kl=3 * kl / 4,
    )


def some_runs(pairs: int = 12, seed: int = 0) -> Runs:
    rng = np.random.default_rng(seed)
    tokens = (rng.integers(1, 9, pairs), rng.integers(1, 9, pairs))
    return {
        (arm, beta, each): figures(rng.normal(0.3, 1, pairs), rng.random(pairs) + 0.1, tokens)
        for arm, beta, each in itertools.product(("dpo", "attention"), (0.1, 1.0), (1, 2, 3))
    }


def test_points_are_means_over_seeds() -> None:
    runs = some_runs()
    found = frontier(runs, "dpo", resamples=100)
    for (arm, beta), metrics in found.points.items():
        of_seeds: dict[str, list[float]] = {name: [] for name in metrics}
        for each in (1, 2, 3):
            run = runs[arm, beta, each]
            kl, tokens, right, longer, shorter = 0.0, 0, [], [], []
            for i in range(len(run)):
                kl += run.kl[i]  # type: ignore[index]
                tokens += run.chosen_tokens[i] + run.rejected_tokens[i]
                hit = 1.0 if run.chosen_ratios[i] > run.rejected_ratios[i] else 0.0
                right.append(hit)
                difference = run.chosen_tokens[i] - run.rejected_tokens[i]
                longer += [hit] * (2 if difference > 0 else int(difference == 0))
                shorter += [hit] * (2 if difference < 0 else int(difference == 0))
            of_seeds["kl_per_token"].append(kl / tokens)
            of_seeds["accuracy"].append(sum(right) / len(right))
            of_seeds["length_controlled_accuracy"].append((np.mean(longer) + np.mean(shorter)) / 2)
            of_seeds["margin"].append(float(np.mean(run.chosen_ratios - run.rejected_ratios)))
        for name, values in of_seeds.items():
            assert metrics[name].value == pytest.approx(sum(values) / 3, rel=1e-12)
            assert metrics[name].low <= metrics[name].value <= metrics[name].high
    difference = found.differences["attention", 0.1]["margin"].value
    points = found.points
    assert difference == pytest.approx(points["attention", 0.1]["margin"].value - points["dpo", 0.1]["margin"].value)


def test_an_arm_that_is_the_baseline_differs_by_nothing_in_every_resample() -> None:
    runs = some_runs()
    twin = {("twin", beta, each): run for (arm, beta, each), run in runs.items() if arm == "dpo"}
    found = frontier({k: v for k, v in runs.items() if k[0] == "dpo"} | twin, "dpo", resamples=200)
    estimates = [*found.differences["twin", 1.0].values(), *found.at_equal_kl["twin"].values()]
    assert all((e.value, e.low, e.high) == (0, 0, 0) for e in estimates)


def test_at_equal_kl_is_the_gap_between_the_frontiers() -> None:
    """Margins of 2 log KL, and of 2 log KL + 1 at other KLs: the gap is 1 wherever both are."""
    tokens = (np.full(5, 3), np.full(5, 2))

    def run(kl: float, more: float) -> PairFigures:
        return figures(np.full(5, 2 * math.log(kl) + more), np.full(5, kl * 5), tokens)

    runs = {("dpo", b, 1): run(kl, 0.0) for b, kl in ((1.0, 0.01), (2.0, 0.1), (3.0, 1.0))}
    runs |= {("more", b, 1): run(kl, 1.0) for b, kl in ((1.0, 0.05), (2.0, 0.7), (3.0, 3.0))}
    found = frontier(runs, "dpo", resamples=100)
    gap = found.at_equal_kl["more"]["margin"]
    assert (gap.value, gap.low, gap.high) == pytest.approx((1, 1, 1))
    # At the same beta it looks like more, since the policy has moved further.
    assert found.differences["more", 1.0]["margin"].value == pytest.approx(1 + 2 * math.log(5))


def test_frontiers_without_a_common_kl_are_not_compared() -> None:
    tokens = (np.full(4, 3), np.full(4, 2))
    runs = {
        (arm, beta, 1): figures(np.ones(4), np.full(4, kl * beta), tokens)
        for arm, kl in (("dpo", 0.01), ("far", 5.0))
        for beta in (1.0, 2.0)
    }
    assert math.isnan(frontier(runs, "dpo", resamples=100).at_equal_kl["far"]["accuracy"].value)


def test_the_interval_covers_what_is_drawn() -> None:
    """The interval of a mean of n normal margins over one seed is about ±1.96/√n."""
    rng = np.random.default_rng(1)
    tokens = (np.full(400, 3), np.full(400, 2))
    runs = {(arm, 1.0, 1): figures(rng.normal(0, 1, 400), np.ones(400), tokens) for arm in ("dpo", "other")}
    point = frontier(runs, "dpo", resamples=4000).points["dpo", 1.0]["margin"]
    assert point.high - point.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_the_same_seed_gives_the_same_intervals() -> None:
    one, two = (frontier(some_runs(), "dpo", resamples=100) for _ in range(2))
    assert one.points == two.points
    assert one.at_equal_kl == two.at_equal_kl


def test_what_does_not_belong_together_is_refused() -> None:
    runs = some_runs()
    with pytest.raises(ValueError, match="every arm needs a run"):
        frontier({key: run for key, run in runs.items() if key != ("dpo", 0.1, 2)}, "dpo", resamples=100)
    runs["dpo", 0.1, 2] = runs["dpo", 0.1, 2].select(range(11))
    with pytest.raises(ValueError, match="same pairs"):
        frontier(runs, "dpo", resamples=100)


def test_arms_may_have_betas_of_their_own() -> None:
    """What an arm's figures are does not depend on how many betas another has."""
    runs = some_runs()
    fewer = {key: run for key, run in runs.items() if key[:2] != ("attention", 1.0)}
    found, all_of_them = (frontier(each, "dpo", resamples=200) for each in (fewer, runs))
    assert list(found.differences) == [("attention", 0.1)]
    for which in ("points", "differences"):
        ours, theirs = (getattr(each, which)["attention", 0.1] for each in (found, all_of_them))
        for name, estimate in ours.items():
            other = theirs[name]
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((other.value, other.low, other.high))
    with pytest.raises(ValueError, match="at each of its betas and every seed"):
        frontier({key: run for key, run in runs.items() if key != ("attention", 1.0, 2)}, "dpo", resamples=100)


def test_pairs_of_one_prompt_are_drawn_together() -> None:
    """Each pair six times over is no more than each once."""
    runs, many = {key: run for key, run in some_runs().items() if key[2] == 1}, {}
    for key, run in runs.items():
        kl = run.kl
        assert kl is not None
        tokens = (np.repeat(run.chosen_tokens, 6), np.repeat(run.rejected_tokens, 6))
        many[key] = figures(np.repeat(run.margins, 6), np.repeat(kl, 6), tokens)
    prompts = [pair // 6 for pair in range(72)]
    once, often = frontier(runs, "dpo", resamples=300), frontier(many, "dpo", prompts=prompts, resamples=300)
    for key, metrics in once.differences.items():
        for name, estimate in metrics.items():
            other = often.differences[key][name]
            assert (estimate.value, estimate.low, estimate.high) == pytest.approx((other.value, other.low, other.high))
    alone = frontier(many, "dpo", resamples=300).points["dpo", 0.1]["margin"]
    point = often.points["dpo", 0.1]["margin"]
    assert alone.high - alone.low < 0.6 * (point.high - point.low)


def test_from_a_control_an_arm_differs_as_from_a_baseline() -> None:
    """Of three arms, the third is compared with the second as if that were the baseline."""
    runs = some_runs() | {("control", *key[1:]): run for key, run in some_runs(seed=1).items() if key[0] == "dpo"}
    found = frontier(runs, "dpo", controls=["control"], resamples=200)
    assert list(found.less_controls) == [("attention", "control")]
    without = {key: run for key, run in runs.items() if key[0] != "dpo"}
    assert (
        found.less_controls["attention", "control"]
        == frontier(without, "control", resamples=200).at_equal_kl["attention"]
    )


def test_betas_that_mean_other_things_are_not_compared() -> None:
    found = frontier(some_runs(), "dpo", apart=["attention"], resamples=100)
    assert found.differences == {}
    assert set(found.at_equal_kl) == {"attention"}
