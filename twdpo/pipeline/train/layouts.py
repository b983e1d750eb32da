"""How pairs are laid out as tensors for a forward pass.

    padded   2P rows, all chosen sequences first, filled up on the right
    packed   one row, sequences end to end: nothing is padding
    tree     one row, a pair's prompt once and its two answers after it: the prompt is computed once

Not for: the order of pairs (`batches.py`), or the attention that the last two need (`attention.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twdpo.pipeline.train.attention import Stem
from twdpo.pipeline.train.data import Example, Side

Logps = tuple[NDArray[np.float32], NDArray[np.float32]]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """P pairs as B rows of T tokens, with N completion tokens; those of the chosen answers come first.

    ids: int64[B, T]. positions: int64[B, T], or None for 0, 1, … in every row. stems: None where every row is a
    sequence of its own. places: int64[N], where in the flattened rows each completion token is predicted; targets:
    int64[N], which token it is. weights, reference: float32[2P, C] for completions of up to C tokens, zero at padding;
    filled: bool[2P, C], where a completion token is.
    """

    ids: Tensor
    positions: Tensor | None
    stems: tuple[Stem, ...] | None
    places: Tensor
    targets: Tensor
    weights: Tensor
    reference: Tensor
    filled: Tensor

    @property
    def inputs(self) -> dict[str, Any]:
        """What `TokenLogps` takes."""
        return {name: getattr(self, name) for name in ("ids", "positions", "stems", "places", "targets")}

    def spread(self, logps_N: Tensor) -> Tensor:
        """Log-probs of the completion tokens as [2P, C], with zeros at padding."""
        return torch.zeros_like(self.reference).masked_scatter(self.filled, logps_N)


def collate(
    examples: Sequence[Example],
    reference: Mapping[str, Logps] | None,
    device: torch.device | str = "cpu",
    layout: str = "padded",
) -> Batch:
    """A batch; without `reference` log-probs these are zero."""
    sides = [example.chosen for example in examples] + [example.rejected for example in examples]
    ids, positions, stems, places = _padded(sides) if layout == "padded" else _in_a_row(examples, tree=layout == "tree")
    longest = max(len(side.weights) for side in sides)
    filled = np.zeros((len(sides), longest), np.bool_)
    weights, logps = np.zeros((len(sides), longest), np.float32), np.zeros((len(sides), longest), np.float32)
    for row, side in enumerate(sides):
        filled[row, : len(side.weights)] = True
        weights[row, : len(side.weights)] = side.weights
        if reference is not None:
            example = examples[row % len(examples)]
            known = reference[example.example_hash][row // len(examples)]
            logps[row, : len(known)] = known
    targets = np.concatenate([side.ids[side.prompt_length :] for side in sides]).astype(np.int64)

    def tensor(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    return Batch(
        ids=tensor(ids),
        positions=None if positions is None else tensor(positions),
        stems=stems,
        places=tensor(places),
        targets=tensor(targets),
        weights=tensor(weights),
        reference=tensor(logps),
        filled=tensor(filled),
    )


def cost(examples: Sequence[Example], layout: str) -> int:
    """Tokens that a forward pass over these pairs computes, padding included."""
    if layout == "padded":
        return 2 * len(examples) * max(example.longest for example in examples)
    shared = sum(e.chosen.prompt_length for e in examples if _share_prompt(e)) if layout == "tree" else 0
    return sum(example.tokens for example in examples) - shared


def _padded(sides: Sequence[Side]) -> tuple[Integers, None, None, Integers]:
    length = max(len(side.ids) for side in sides)
    ids = np.zeros((len(sides), length), np.int64)
    places = []
    for row, side in enumerate(sides):
        ids[row, : len(side.ids)] = side.ids
        places.append(row * length + np.arange(side.prompt_length - 1, len(side.ids) - 1))
    return ids, None, None, np.concatenate(places)


def _in_a_row(examples: Sequence[Example], *, tree: bool) -> tuple[Integers, Integers, tuple[Stem, ...], Integers]:
    """One row; pairs whose sides begin differently are laid out as two sequences even in a tree."""
    ids: list[NDArray[Any]] = []
    positions: list[Integers] = []
    stems: list[Stem] = []
    chosen_places: list[Integers] = []
    rejected_places: list[Integers] = []
    at = 0
    for example in examples:
        shared = example.chosen.prompt_length if tree and _share_prompt(example) else 0
        ids.append(example.chosen.ids[:shared])
        positions.append(np.arange(shared))
        begin = at + shared
        for side, places in ((example.chosen, chosen_places), (example.rejected, rejected_places)):
            ids.append(side.ids[shared:])
            positions.append(np.arange(shared, len(side.ids)))
            # The first token of an answer is predicted at the prompt's last one, which may lie before the branch.
            place = begin + np.arange(side.prompt_length - 1, len(side.ids) - 1) - shared
            place[: 1 if shared else 0] = at + shared - 1
            places.append(place)
            begin += len(side.ids) - shared
        branches = (len(example.chosen.ids) - shared, len(example.rejected.ids) - shared)
        stems += (
            [Stem(length=shared, branches=branches)] if shared else [Stem(length=0, branches=(n,)) for n in branches]
        )
        at = begin
    row, places_N = np.concatenate(ids).astype(np.int64), np.concatenate(chosen_places + rejected_places)
    return row[None], np.concatenate(positions)[None], tuple(stems), places_N


def _share_prompt(example: Example) -> bool:
    chosen, rejected = example.chosen, example.rejected
    n = chosen.prompt_length
    return n == rejected.prompt_length and bool(np.array_equal(chosen.ids[:n], rejected.ids[:n]))
