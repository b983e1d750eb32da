"""Weights on their way to the loss: into TRL's batches, and from there onto log-probs.

They don't travel through the model's arguments, where mixed precision would round them. B sequences (chosen, then
rejected) of T tokens. Not for: what the weights are (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from twdpo.errors import TrainingError

#: Columns of a prepared data set: a weight for each token of `chosen_ids` and `rejected_ids`.
CHOSEN_WEIGHTS, REJECTED_WEIGHTS = "chosen_weights", "rejected_weights"
#: What they are together in a batch: float32[B, T], zero in prompts and padding.
COMPLETION_WEIGHTS = "completion_weights"


class WeightsCollator:
    """TRL's collator, and the weights of the tokens that it left after its truncation."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(examples)
        completion_BT = batch["completion_mask"].bool()
        weights_BT = torch.zeros(completion_BT.shape, dtype=torch.float32)
        uncut = [example[column] for column in (CHOSEN_WEIGHTS, REJECTED_WEIGHTS) for example in examples]
        for row, values in enumerate(uncut):
            kept = int(completion_BT[row].sum())
            left = len(values) - kept if self.collator.truncation_mode == "keep_end" else 0
            weights_BT[row, completion_BT[row]] = torch.tensor(values[left : left + kept], dtype=torch.float32)
        return batch | {COMPLETION_WEIGHTS: weights_BT}


class LogProbWeighting:
    """A forward hook that multiplies `log_probs` with the weights of the batch in hand, and counts that it did.

    Outside `of` it does nothing.
    """

    def __init__(self) -> None:
        self._weights_BT: Tensor | None = None
        self._weighted = 0
        self._attached: list[nn.Module] = []

    def attach(self, model: nn.Module | None) -> None:
        """Weigh what this model returns; once, however often it is asked for."""
        if model is not None and all(model is not known for known in self._attached):
            model.register_forward_hook(self)
            self._attached.append(model)

    @contextmanager
    def of(self, batch: Mapping[str, Any], passes: int) -> Iterator[dict[str, Any]]:
        """The batch without its weights, which hold until the end of the block.

        Raises TrainingError unless they were used by as many forward passes.
        """
        if COMPLETION_WEIGHTS not in batch:
            raise TrainingError("a batch came without weights; leave data loading and collation to the trainer")
        self._weights_BT, self._weighted = batch[COMPLETION_WEIGHTS], 0
        try:
            yield {name: value for name, value in batch.items() if name != COMPLETION_WEIGHTS}
        finally:
            self._weights_BT = None
        if self._weighted != passes:
            raise TrainingError(
                f"trl weighted {self._weighted} of {passes} forward passes: its loss is not the one that this version "
                "of twdpo knows; install trl 1.16"
            )

    def __call__(self, _model: nn.Module, _inputs: Any, outputs: Any) -> Any:
        log_probs = getattr(outputs, "log_probs", None)
        if self._weights_BT is None or log_probs is None:
            return None
        weights = self._weights_BT[:, 1:].to(log_probs.device)
        length = weights.shape[1]
        if log_probs.shape[0] != len(weights) or log_probs.shape[1] < length:
            raise TrainingError(
                f"log-probs of shape {tuple(log_probs.shape)} don't fit weights of shape {tuple(weights.shape)}; "
                "leave off what splits or packs sequences"
            )
        # Prompt learning puts virtual tokens before the real ones.
        outputs.log_probs = log_probs[:, -length:] * weights
        self._weighted += 1
        return outputs
