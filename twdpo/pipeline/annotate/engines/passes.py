"""How the transformers engine runs prompts through a model: in a row (`packed.py`) or padded (`padded.py`).

Not for: which prompts make a pass, and what to do when memory runs out (`transformers.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.capture import EnoughError, Pass, running
from twdpo.pipeline.annotate.engines.packed import Head, PackedPass
from twdpo.pipeline.annotate.engines.padded import PaddedPass
from twdpo.pipeline.annotate.engines.tree import Ids, Tree, divide, grow, lay, shared_head
from twdpo.pipeline.annotate.engines.trim import only_at, tokenwise_modules
from twdpo.pipeline.models import input_device

#: A head shorter than this is not worth its keeping.
_LEAST_HEAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RawReadings:
    """Of R prompts: float32[R, longest prompt] a layer, and logits float32[R, vocabulary], None where not asked for."""

    prompts: tuple[int, ...]
    rows: dict[int, NDArray[np.float32]]
    logits: Tensor | None


class Way(ABC):
    """A way to run prompts through a model, known by their indices in a list of token ids."""

    def __init__(self, model: Any, num_layers: int) -> None:
        self._model, self._last, self._device = model, num_layers - 1, input_device(model)
        self._output_head: nn.Module = model.get_output_embeddings()

    @abstractmethod
    def plan(self, ids: Sequence[Ids]) -> list[Tree]:
        """All prompts, in the order in which they are run."""

    @abstractmethod
    def take(self, trees: Sequence[Tree], budget: int, most: int | None) -> list[Tree]:
        """The first of `trees`, as many as one pass of `budget` tokens and `most` prompts holds; one at least."""

    @abstractmethod
    def run(self, trees: Sequence[Tree], ids: Sequence[Ids], layers: Sequence[int], *, verdict: bool) -> RawReadings:
        """One forward pass. Raises ModelError where a layer gave no attention, and whatever the model raises."""

    def _forward(self, forward_pass: Pass, choose: Callable[[Tensor], Tensor], **inputs: Tensor) -> Tensor | None:
        """Logits [R, vocabulary], or None where the pass had enough before. choose: hidden states → [R, 1, ·].

        The model's own forward calls the head, so that what it does to logits afterwards (soft caps, scales) is done.
        """

        def gather(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (choose(arguments[0]), *arguments[1:])

        handle = self._output_head.register_forward_pre_hook(gather)
        try:
            with running(forward_pass), suppress(EnoughError):
                logits: Tensor = self._model(**inputs, use_cache=False).logits
                return logits[:, -1]
        finally:
            handle.remove()
        return None

    def _readings(
        self, prompts: tuple[int, ...], rows: dict[int, Tensor], layers: Sequence[int], logits: Tensor | None
    ) -> RawReadings:
        if missing := sorted(set(layers) - rows.keys()):
            raise ModelError(f"{no_interface(self._model)} (layer {missing[0]} gave no attention)")
        return RawReadings(
            prompts=prompts,
            rows={layer: rows[layer].cpu().numpy() for layer in layers},
            logits=None if logits is None else logits.float(),
        )


class InARow(Way):
    """Prompts in a row, their shared beginnings once.

    trim: compute the last layer at the reading positions only. at_once: attention of all segments in one kernel.
    """

    def __init__(self, model: Any, num_layers: int, *, trim: bool = True, at_once: bool = False) -> None:
        super().__init__(model, num_layers)
        self._at_once = at_once
        self._trimmed = tokenwise_modules(model, self._last) if trim else []
        self._head: Head | None = None
        self.windows: dict[int, int | None] = {}

    def plan(self, ids: Sequence[Ids]) -> list[Tree]:
        """Trees in the order of the prompts."""
        if self._head is None:
            self._keep_head(shared_head(ids))
        return grow(ids, self._head.ids if self._head else ids[0][:0])

    def take(self, trees: Sequence[Tree], budget: int, most: int | None) -> list[Tree]:
        """Parts of about equal size."""
        return next(divide(trees, budget, most))

    def run(self, trees: Sequence[Tree], ids: Sequence[Ids], layers: Sequence[int], *, verdict: bool) -> RawReadings:
        """One row."""
        row = lay(trees, ids, len(self._head.ids) if self._head else 0)
        stop_at = None if verdict else max(layers, default=0)
        packed = PackedPass(
            row, layers=layers, last=self._last, head=self._head, stop_at=stop_at, at_once=self._at_once
        )
        device = self._device
        places = torch.from_numpy(row.places).to(device)
        with only_at(self._trimmed, places):
            logits = self._forward(
                packed,
                lambda hidden: hidden[0, places.to(hidden.device)][:, None],
                input_ids=torch.from_numpy(row.ids)[None].to(device),
                position_ids=torch.from_numpy(row.positions)[None].to(device),
            )
        self.windows = packed.windows
        return self._readings(row.prompts, packed.rows, layers, logits)

    def _keep_head(self, ids: Ids) -> None:
        """Compute keys and values of what all prompts begin with."""
        if len(ids) < _LEAST_HEAD:
            return
        head = Head(ids)
        tree = Tree(prompts=(0,), head=0, stem=0, tokens=len(ids))
        row = lay([tree], [ids], 0)
        packed = PackedPass(row, layers=(), last=self._last, head=head, fill_head=True, stop_at=self._last)
        device = self._device
        self._forward(
            packed,
            lambda hidden: hidden[:, -1:],
            input_ids=torch.from_numpy(row.ids)[None].to(device),
            position_ids=torch.from_numpy(row.positions)[None].to(device),
        )
        self._head = head


class Padded(Way):
    """Whole prompts, those of about the same length together."""

    def plan(self, ids: Sequence[Ids]) -> list[Tree]:
        """A prompt a tree, the longest first."""
        order = sorted(range(len(ids)), key=lambda i: (-len(ids[i]), i))
        return [Tree(prompts=(i,), head=0, stem=0, tokens=len(ids[i])) for i in order]

    def take(self, trees: Sequence[Tree], budget: int, most: int | None) -> list[Tree]:
        """As many as fit, padding counted."""
        fitting = max(1, budget // trees[0].tokens)
        return list(trees[: min(fitting, most or fitting)])

    def run(self, trees: Sequence[Tree], ids: Sequence[Ids], layers: Sequence[int], *, verdict: bool) -> RawReadings:
        """One batch."""
        prompts = tuple(index for tree in trees for index in tree.prompts)
        device = self._device
        lengths = torch.tensor([len(ids[i]) for i in prompts], device=device)
        batch = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
        for row, i in enumerate(prompts):
            batch[row, : len(ids[i])] = torch.from_numpy(ids[i].astype(np.int64))
        padded = PaddedPass(layers, lengths - 1, stop_at=None if verdict else max(layers, default=0))

        def choose(hidden: Tensor) -> Tensor:
            at = lengths.to(hidden.device) - 1
            return hidden[torch.arange(len(at), device=hidden.device), at][:, None]

        logits = self._forward(padded, choose, input_ids=batch.to(device))
        return self._readings(prompts, padded.rows, layers, logits)


def no_interface(model: Any) -> str:
    """The message for a model whose attention is out of reach."""
    return (
        f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot be read; "
        "use another judge"
    )
