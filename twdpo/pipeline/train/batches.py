"""The order of examples, steps and micro-batches, and where in it a run stands.

All of it follows from the seed and the position, two whole numbers, so that a run can go on where it stopped.
Not for: the tensors of a forward pass (`layouts.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.layouts import cost

#: Tokens in one forward pass, padding included, where the number of pairs is left open. A token's activations take 1
#: MB in a 135M model in float32, and a CPU gains nothing from more tokens at a time.
TOKEN_BUDGET = {"cpu": 1024, "accelerator": 4096}
#: Tokens whose activations a forward pass may keep, where that is left open: a pair is not divided, however long it is.
ACTIVATION_TOKENS = {"cpu": 1024, "accelerator": 16384}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How many optimizer steps a run has; the last step of an epoch may hold fewer pairs."""

    pairs: int
    batch_size: int
    steps: int

    @classmethod
    def of(cls, pairs: int, batch_size: int, epochs: float, max_steps: int | None) -> Plan:
        """The plan for so many epochs, or for `max_steps` where given."""
        per_epoch = math.ceil(pairs / batch_size)
        steps = max_steps if max_steps is not None else max(1, math.ceil(epochs * per_epoch - 1e-9))
        return cls(pairs=pairs, batch_size=batch_size, steps=steps)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that see every pair once."""
        return math.ceil(self.pairs / self.batch_size)

    def epoch_after(self, step: int) -> float:
        """How many epochs are done after `step` steps."""
        whole, rest = divmod(step, self.steps_per_epoch)
        return whole + min(rest * self.batch_size, self.pairs) / self.pairs


def step_indices(plan: Plan, seed: int, step: int) -> NDArray[np.int64]:
    """Which examples step `step` (0-based) trains on; every epoch has its own order."""
    epoch, position = divmod(step, plan.steps_per_epoch)
    order = _order(plan.pairs, seed, epoch)
    return order[position * plan.batch_size : (position + 1) * plan.batch_size]


@lru_cache(maxsize=2)
def _order(pairs: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(pairs)


class Measured(Protocol):
    """What is dealt out by its length."""

    @property
    def longest(self) -> int:
        """Tokens of the longer response."""

    @property
    def example_hash(self) -> str:
        """Decides between two of the same length."""


Item = TypeVar("Item", bound=Measured)


def share(examples: Sequence[Item], rank: int, ranks: int) -> list[Item]:
    """This process's part of a step, about as long as every other's; a rank may get none."""
    return sorted(examples, key=lambda example: (example.longest, example.example_hash))[rank::ranks]


def micro_batches(
    examples: Sequence[Example], pairs: int | None, tokens: int, layout: str = "padded"
) -> Iterator[list[Example]]:
    """Groups of similar length: `pairs` pairs each, or as many as cost at most `tokens` tokens, but at least one."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda example: (example.longest, example.example_hash)):
        full = len(group) == pairs if pairs is not None else cost([*group, example], layout) > tokens
        if group and full:
            yield group
            group = []
        group.append(example)
    if group:
        yield group
