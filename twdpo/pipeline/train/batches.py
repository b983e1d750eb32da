"""The order of examples, steps and micro-batches, and where in it a run stands.

All of it follows from the seed and the position, two whole numbers, so that a run can go on where it stopped.
Not for: the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twdpo.pipeline.train.data import Example

#: Padded tokens in one forward pass where the number of pairs is left open. A token's activations take 2.5 MB in a
#: 135M model in float32, and a CPU gains nothing from more tokens at a time.
TOKEN_BUDGET = {"cpu": 1024, "accelerator": 4096}

Logps = tuple[NDArray[np.float32], NDArray[np.float32]]


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
    order = np.random.default_rng([seed, epoch]).permutation(plan.pairs)
    return order[position * plan.batch_size : (position + 1) * plan.batch_size]


def share(examples: Sequence[Example], rank: int, ranks: int) -> list[Example]:
    """This process's part of a step, about as long as every other's; a rank may get none."""
    return sorted(examples, key=lambda example: (example.longest, example.example_hash))[rank::ranks]


def micro_batches(examples: Sequence[Example], pairs: int | None, tokens: int) -> Iterator[list[Example]]:
    """Groups of similar length: `pairs` pairs each, or as many as pad to at most `tokens` tokens, but at least one."""
    group: list[Example] = []
    for example in sorted(examples, key=lambda example: (example.longest, example.example_hash)):
        # Sorted, so that this example would be the longest.
        full = len(group) == pairs if pairs is not None else 2 * (len(group) + 1) * example.longest > tokens
        if group and full:
            yield group
            group = []
        group.append(example)
    if group:
        yield group


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """P pairs as 2P sequences, all chosen ones first, padded on the right to T tokens; completions to C tokens.

    ids: int64[2P, T]; mask: int64[2P, T]; wanted: bool[2P, T], the completion tokens. weights, reference: float32
    [2P, C], zero at padding; filled: bool[2P, C], where a completion token is.
    """

    ids: Tensor
    mask: Tensor
    wanted: Tensor
    weights: Tensor
    reference: Tensor
    filled: Tensor

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.ids.shape[0] // 2

    def spread(self, logps_N: Tensor) -> Tensor:
        """Log-probs of the wanted tokens, row by row, as [2P, C] with zeros at padding."""
        return torch.zeros_like(self.reference).masked_scatter(self.filled, logps_N)


def collate(
    examples: Sequence[Example], reference: Mapping[str, Logps] | None, device: torch.device | str = "cpu"
) -> Batch:
    """A batch; without `reference` log-probs these are zero."""
    sides = [example.chosen for example in examples] + [example.rejected for example in examples]
    rows, length = len(sides), max(len(side.ids) for side in sides)
    longest = max(len(side.weights) for side in sides)
    ids, mask = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
    wanted, filled = np.zeros((rows, length), np.bool_), np.zeros((rows, longest), np.bool_)
    weights, logps = np.zeros((rows, longest), np.float32), np.zeros((rows, longest), np.float32)
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = side.ids
        mask[row, : len(side.ids)] = 1
        wanted[row, side.prompt_length : len(side.ids)] = True
        filled[row, : len(side.weights)] = True
        weights[row, : len(side.weights)] = side.weights
        if reference is not None:
            example = examples[row % len(examples)]
            known = reference[example.example_hash][row // len(examples)]
            logps[row, : len(known)] = known
    tensors = (torch.from_numpy(array).to(device) for array in (ids, mask, wanted, weights, logps, filled))
    ids_, mask_, wanted_, weights_, logps_, filled_ = tensors
    return Batch(ids=ids_, mask=mask_, wanted=wanted_, weights=weights_, reference=logps_, filled=filled_)
