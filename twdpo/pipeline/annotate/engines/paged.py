"""One row of attention out of a serving engine's step: requests packed one after another, keys kept by slot.

Pure tensor arithmetic, without the serving engine. Not for: getting hold of a step (`vllm_worker.py`), or asking for
one (`vllm.py`).

Shapes: T tokens of a step, R requests in it, H query heads, G key heads, D width of a head, L tokens of one prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twdpo.pipeline.annotate.engines.kernels import Scores, capped


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step computes, by request.

    names: of the R requests. starts: where each one's tokens begin among the step's, and where the last ends, R + 1
    numbers. lengths: tokens of each request that are known after this step, R numbers. block_table: [R or more,
    blocks]. block_size: tokens in a block.
    """

    names: tuple[str, ...]
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    block_table: Tensor
    block_size: int

    def slots(self, request: int) -> Tensor:
        """The slots that hold the tokens of a request, in their order; int64[L]."""
        places = torch.arange(self.lengths[request], device=self.block_table.device)
        blocks = self.block_table[request, places // self.block_size].long()
        return blocks * self.block_size + places % self.block_size

    def agrees(self, slot_mapping: Tensor) -> bool:
        """Whether every request's newest token goes where the block table has it: the two describe one layout."""
        computed = [i for i in range(len(self.names)) if self.starts[i] < self.starts[i + 1]]
        if max(self.lengths, default=0) > self.block_size * self.block_table.shape[1]:
            return False
        rows = torch.tensor(computed, dtype=torch.long, device=self.block_table.device)
        last = torch.tensor([self.lengths[i] - 1 for i in computed], device=self.block_table.device)
        expected = self.block_table[rows, last // self.block_size].long() * self.block_size + last % self.block_size
        ends = torch.tensor([self.starts[i + 1] - 1 for i in computed], device=slot_mapping.device)
        return bool((slot_mapping[ends].long() == expected).all())


class KeyStore:
    """A layer's keys by slot, of everything computed since it was made: [slots, G, D]."""

    def __init__(self, slots: int, key: Tensor) -> None:
        self._keys = torch.empty((slots, *key.shape[1:]), dtype=key.dtype, device=key.device)

    def write(self, slot_mapping: Tensor, key: Tensor) -> None:
        """Keep a step's keys; slot_mapping: [T], negative where a token has no place."""
        used = slot_mapping >= 0
        self._keys[slot_mapping[used].long()] = key[used]

    def read(self, slots: Tensor) -> Tensor:
        """The keys in these slots, [len(slots), G, D]."""
        return self._keys[slots]


def step_rows(step: Step, query: Tensor, key: Tensor, store: KeyStore, scores: Scores) -> dict[str, Tensor]:
    """For each request the attention of its newest token over all its tokens, mean over heads; float32[L].

    query: [T, H, D]; key: [T, G, D]. The store must hold this step's keys already.
    """
    rows: dict[str, Tensor] = {}
    for i, name in enumerate(step.names):
        first, last, length = step.starts[i], step.starts[i + 1], step.lengths[i]
        if first == last:
            continue
        # Nothing was there before: the step's own keys are all, and in order.
        keys = key[first:last] if last - first == length else store.read(step.slots(i))
        rows[name] = attention_row(query[last - 1], keys, scores)
    return rows


def attention_row(query: Tensor, keys: Tensor, scores: Scores) -> Tensor:
    """The softmax attention of one query over `keys`, the last of which is its own, mean over heads; float32[L].

    query: [H, D]; keys: [L, G, D]. Query head h reads key head h // (H // G).
    """
    heads, width = query.shape
    length, key_heads, _ = keys.shape
    grouped = query.float().view(key_heads, heads // key_heads, width)
    row = capped(torch.matmul(grouped, keys.float().permute(1, 2, 0)) * scores.scale, scores.softcap)
    if scores.window is not None and scores.window < length:
        row[..., : length - scores.window] = float("-inf")
    return row.softmax(dim=-1).view(heads, length).mean(dim=0)


def mean_over_ranks(means: Sequence[Tensor], heads: Sequence[int]) -> Tensor:
    """The mean over all heads from each rank's mean over its own `heads`."""
    if len(means) == 1:
        return means[0]
    total = torch.stack([mean.double() * count for mean, count in zip(means, heads, strict=True)]).sum(dim=0)
    return (total / sum(heads)).float()
