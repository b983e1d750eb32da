"""Log-probs of answers' tokens under a causal language model, for reading a model, not for training one.

Sequences of about the same length run together, padded on the right, where no token looks; logits are made at the
answers' tokens only. Not for: gradients, or log-probs by the hundred thousand (`train/logps.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twdpo.errors import ModelError
from twdpo.pipeline.memory import give_back, out_of_memory
from twdpo.pipeline.models import input_device

#: Tokens in one pass at the most, and logits in it, where it holds more than one sequence.
_TOKENS_ON_CPU, _TOKENS_ON_ACCELERATOR = 2048, 32768
_LOGITS_ON_CPU, _LOGITS_ON_ACCELERATOR = 1 << 25, 1 << 29


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerInContext:
    """One sequence of tokens int32[T], of which those in [first, last) are an answer's; first is 1 at least."""

    ids: NDArray[np.int32]
    first: int
    last: int


@torch.inference_mode()
def answer_logps(
    model: Any, sequences: Sequence[AnswerInContext], *, batch_size: int | None = None
) -> list[NDArray[np.float32]]:
    """log π(answer token | what comes before), float32[last − first] a sequence, in order.

    batch_size: sequences in a pass at the most. Raises ModelError where memory does not suffice for one alone.
    """
    logps: dict[int, NDArray[np.float32]] = {}
    waiting = sorted(range(len(sequences)), key=lambda i: (-len(sequences[i].ids), i))
    on_cpu = input_device(model).type == "cpu"
    tokens = _TOKENS_ON_CPU if on_cpu else _TOKENS_ON_ACCELERATOR
    logits = (_LOGITS_ON_CPU if on_cpu else _LOGITS_ON_ACCELERATOR) // int(model.config.get_text_config().vocab_size)
    while waiting:
        part = _take(waiting, sequences, tokens, logits, batch_size)
        found = _run(model, [sequences[i] for i in part])
        if found is None:
            if len(part) == 1:
                raise ModelError(
                    f"out of memory on a single sequence of {len(sequences[part[0]].ids)} tokens; "
                    "use a smaller --max-length, or --dtype bfloat16, or a smaller model"
                )
            batch_size = len(part) // 2
            continue
        logps |= dict(zip(part, found, strict=True))
        waiting = waiting[len(part) :]
    return [logps[i] for i in range(len(sequences))]


def _take(
    waiting: Sequence[int], sequences: Sequence[AnswerInContext], tokens: int, logits: int, most: int | None
) -> list[int]:
    """The first of `waiting`, as many as fit."""
    longest, wanted, part = len(sequences[waiting[0]].ids), 0, list[int]()
    for index in waiting[:most]:
        wanted += sequences[index].last - sequences[index].first
        if part and ((len(part) + 1) * longest > tokens or wanted > logits):
            break
        part.append(index)
    return part


def _run(model: Any, sequences: Sequence[AnswerInContext]) -> list[NDArray[np.float32]] | None:
    """One pass; None where memory did not suffice."""
    device = input_device(model)
    ids_BT = torch.zeros(len(sequences), max(len(each.ids) for each in sequences), dtype=torch.long)
    for row, each in enumerate(sequences):
        ids_BT[row, : len(each.ids)] = torch.from_numpy(each.ids.astype(np.int64))
    counts = [each.last - each.first for each in sequences]
    rows_N = torch.repeat_interleave(torch.arange(len(sequences)), torch.tensor(counts))
    places_N = torch.cat([torch.arange(each.first, each.last) for each in sequences])
    targets_N = ids_BT[rows_N, places_N]
    try:
        logits_NV = _logits_at(model, ids_BT.to(device), rows_N, places_N - 1)
        chosen_N = logits_NV.gather(1, targets_N.to(logits_NV.device)[:, None])[:, 0]
        logps_N = (chosen_N - logits_NV.logsumexp(dim=1)).cpu()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        logps_N = None
    if logps_N is None:
        give_back()
        return None
    return np.split(logps_N.numpy(), np.cumsum(counts)[:-1])


def _logits_at(model: Any, ids_BT: Tensor, rows_N: Tensor, places_N: Tensor) -> Tensor:
    """The model's own logits at some places, float32[N, V], with whatever it does to them behind its head."""

    def choose(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0]
        return (hidden[rows_N.to(hidden.device), places_N.to(hidden.device)][None], *arguments[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        logits: Tensor = model(input_ids=ids_BT, use_cache=False).logits
        return logits[0].float()
    finally:
        handle.remove()
