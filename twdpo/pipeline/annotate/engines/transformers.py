"""The transformers engine: judge prompts that share what they begin with, one attention row a wanted layer.

The judge template's beginning is computed once a run, the question once a pair, nothing is padding, and the last layer
is computed at the reading positions only. Whether a model can be run so is tried on a few tokens; one that mixes
positions outside of its attention runs each prompt whole. Where memory runs out, a pass is halved. Not for: the passes
themselves (`passes.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.engines.capture import register
from twdpo.pipeline.annotate.engines.decoder import DecoderEngine
from twdpo.pipeline.annotate.engines.kernels import has_varlen
from twdpo.pipeline.annotate.engines.passes import InARow, Padded, RawReadings, Way, no_interface
from twdpo.pipeline.annotate.engines.tree import Ids, Tree, halves
from twdpo.pipeline.annotate.prompt import JudgePrompt
from twdpo.pipeline.cpu_linear import use_fast_exact_linear
from twdpo.pipeline.flops import DecoderShape, peak_of, shape_of
from twdpo.pipeline.memory import give_back, out_of_memory
from twdpo.pipeline.models import input_device

#: Tokens in one forward pass at the most, where it holds more than a pair.
_TOKENS_ON_CPU, _TOKENS_ON_ACCELERATOR = 2048, 32768
#: How far logits in a row may be from those of whole prompts, relative to their length as vectors.
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-3}
_CLOSE_IN_HALF = 0.1

_log = logging.getLogger(__name__)


class TransformersEngine(DecoderEngine):
    """Reads attention from any decoder that uses transformers' attention interface.

    `batch_size`: prompts in one forward pass at the most; None lets `token_budget` decide, or a default for the device.
    Raises ModelError where the model has an attention of its own, out of this engine's reach.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None, token_budget: int | None = None) -> None:
        self._model = model
        super().__init__(model.config)
        self._batch_size = batch_size
        self._on_cpu = input_device(model).type == "cpu"
        self._budget = token_budget or (_TOKENS_ON_CPU if self._on_cpu else _TOKENS_ON_ACCELERATOR)
        if model.get_output_embeddings() is None:
            raise ModelError(f"{type(model).__name__} has no language-model head; use a causal language model")
        try:
            model.set_attn_implementation(register())
        except (ValueError, KeyError, ImportError, NotImplementedError):
            raise ModelError(no_interface(model)) from None
        use_fast_exact_linear(model)
        self._way: Way | None = None

    @property
    def window_tokens(self) -> int:
        """A few passes at once on an accelerator, so that all are about full."""
        return 0 if self._on_cpu else 4 * self._budget

    @cached_property
    def peak_flops(self) -> float | None:
        """Of the GPU, where its kind is known."""
        return peak_of({parameter.device for parameter in self._model.parameters()}, str(self._model.dtype)[6:])

    def flops(self, prompts: Sequence[JudgePrompt], layers: Sequence[int], *, verdict: bool) -> float | None:
        """Of all layers that are run, shared beginnings once; the last layer counts whole."""
        deep = self.num_layers if verdict else max(layers) + 1
        ids = [prompt.ids for prompt in prompts]
        return self._shape.flops(ids, layers=deep, heads=verdict) if self._shape and self.peak_flops else None

    @cached_property
    def _shape(self) -> DecoderShape | None:
        return shape_of(self._model)

    @torch.inference_mode()
    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        """One reading a prompt, in order."""
        if not prompts:
            return []
        ids = [prompt.ids for prompt in prompts]
        if self._way is None:
            self._way = self._choose_way(ids[0])
        readings: dict[int, Reading] = {}
        waiting = self._way.plan(ids)
        while waiting:
            part = self._way.take(waiting, self._budget, self._batch_size)
            waiting = waiting[len(part) :]
            raw = self._run(part, ids, layers, verdict=verdict_ids is not None)
            if raw is None:
                waiting = [*self._halve(part, ids), *waiting]
            else:
                readings |= _cut_out(raw, prompts, verdict_ids)
        return [readings[i] for i in range(len(prompts))]

    def _run(self, part: list[Tree], ids: Sequence[Ids], layers: Sequence[int], *, verdict: bool) -> RawReadings | None:
        """One pass, or None where there was not memory enough for it."""
        assert self._way is not None
        try:
            return self._way.run(part, ids, layers, verdict=verdict)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        give_back()
        return None

    def _halve(self, part: list[Tree], ids: Sequence[Ids]) -> list[Tree]:
        """The same work in two, and a smaller budget for all that follows. Raises ModelError where it is one prompt."""
        tokens = sum(tree.tokens for tree in part)
        parts = halves(part)
        if parts is None:
            raise ModelError(
                f"out of memory on a single judge prompt of {len(ids[part[0].prompts[0]])} tokens; "
                "use a smaller --max-length, or --dtype bfloat16, or a smaller judge"
            )
        self._budget = max(tokens // 2, 1)
        _log.warning("out of memory on a pass of %d tokens; going on with %d", tokens, self._budget)
        return [*parts[0], *parts[1]]

    def _choose_way(self, ids: Ids) -> Way:
        """In a row where that gives what whole prompts give, and the last layer cut down where that does too."""
        kinds = set(getattr(self._config, "layer_types", None) or ())
        if kinds <= {"full_attention", "sliding_attention"}:
            at_once = (True, False) if has_varlen(input_device(self._model), self._model.dtype) else (False,)
            for options in ({"trim": trim, "at_once": once} for trim in (True, False) for once in at_once):
                if self._agrees(InARow(self._model, self.num_layers, **options), ids):
                    return InARow(self._model, self.num_layers, **options)
        return Padded(self._model, self.num_layers)

    def _agrees(self, way: InARow, ids: Ids) -> bool:
        """Whether a few short prompts give the same logits in a row as whole."""
        probes = _probes(ids)
        plain = Padded(self._model, self.num_layers)
        layers = (self.num_layers - 1,)
        expected = plain.run(plain.plan(probes), probes, layers, verdict=True)
        try:
            got = way.run(way.plan(probes), probes, layers, verdict=True)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ModelError) as error:
            if out_of_memory(error):
                raise
            return False
        if any(way.windows.get(layer, -1) != self.reach(layer) for layer in range(self.num_layers)):
            return False
        assert expected.logits is not None
        assert got.logits is not None
        wanted = expected.logits[np.argsort(expected.prompts)]
        error_R = (got.logits[np.argsort(got.prompts)] - wanted).norm(dim=1) / wanted.norm(dim=1)
        return bool((error_R < _CLOSE.get(self._model.dtype, _CLOSE_IN_HALF)).all())


def _probes(ids: Ids) -> list[Ids]:
    """Three short prompts of real tokens with a common head, two of them with a common stem.

    Their tails are as short as can be: what leaks into a tail from its neighbours in the row has then faded least.
    """
    tokens = np.resize(ids, 64)
    head, stem = tokens[:20], tokens[20:28]
    tails = (tokens[28:29], tokens[29:31][::-1])
    return [np.concatenate([head, stem, tail]) for tail in tails] + [np.concatenate([head, tokens[40:43]])]


def _cut_out(
    raw: RawReadings, prompts: Sequence[JudgePrompt], verdict_ids: tuple[int, int] | None
) -> dict[int, Reading]:
    """The answers' parts of the rows, and the verdicts' logits."""
    verdicts = None if raw.logits is None or verdict_ids is None else raw.logits[:, list(verdict_ids)].cpu().tolist()

    def answers(row: Any, prompt: JudgePrompt) -> tuple[Any, Any]:
        spans = (prompt.answer_a, prompt.answer_b)
        first, second = (row[span.first : span.last].copy() for span in spans)
        return first, second

    return {
        index: Reading(
            attention={layer: answers(rows[r], prompts[index]) for layer, rows in raw.rows.items()},
            verdict_logits=None if verdicts is None else (verdicts[r][0], verdicts[r][1]),
        )
        for r, index in enumerate(raw.prompts)
    }
