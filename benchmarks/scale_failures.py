"""Machines that are lost during a run: what that costs, by formula and simulated.

Machines fail by themselves, as often at any time. What a machine did since its last shard is lost, and it works again
after a while. Each has its own part, so that the run takes as long as the slowest. Not for: what a run does
(`scale_model.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """`count` machines with `work` seconds of work each, a shard `every` so many, `rate` losses a second of work.

    restart: seconds from a loss until the machine works again.
    """

    count: int
    work: float
    every: float
    rate: float
    restart: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """How many machines were lost, seconds of work that they did again, seconds added to the mean and the slowest."""

    lost: float
    redone: float
    mean: float
    slowest: float


def expected(machines: Machines) -> Losses:
    """The expectation: a shard takes (exp(rate·every) − 1) / rate seconds of work, its losses included.

    That is exact for losses that come as a Poisson process. The slowest is estimated: it has as many losses as the
    unluckiest of so many Poisson counts, each of which costs the mean.
    """
    shards = machines.work / machines.every
    lost = shards * math.expm1(machines.rate * machines.every)
    redone = lost / machines.rate - machines.work
    each = machines.restart + redone / lost
    return Losses(
        lost=machines.count * lost,
        redone=machines.count * redone,
        mean=lost * each,
        slowest=most(lost, machines.count) * each,
    )


def most(mean: float, count: int) -> float:
    """The expected largest of `count` Poisson numbers of one `mean`."""
    total, at_most, k = 0.0, 0.0, 0
    while True:
        at_most += math.exp(k * math.log(mean) - mean - math.lgamma(k + 1))
        above = 1.0 - min(at_most, 1.0) ** count
        total += above
        if k > mean and above < 1e-9:
            return total
        k += 1


def simulate(machines: Machines, *, seed: int) -> Losses:
    """One run, loss by loss."""
    rng = np.random.default_rng(seed)
    lost = 0
    again = np.zeros(machines.count)
    extra = np.zeros(machines.count)
    for machine in range(machines.count):
        done = 0.0
        while True:
            until = rng.exponential(1 / machines.rate)
            if done + until >= machines.work:
                break
            kept = (done + until) // machines.every * machines.every
            again[machine] += done + until - kept
            extra[machine] += done + until - kept + machines.restart
            lost += 1
            done = kept
    return Losses(lost=lost, redone=float(again.sum()), mean=float(extra.mean()), slowest=float(extra.max()))
