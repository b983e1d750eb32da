"""The transformers engine: batches of judge prompts, one attention row per wanted layer, one position of logits.

Sequences are padded on the right and run without a padding mask: under causal attention no real token can see what
follows it, so the numbers are those of each prompt alone and the fast causal kernels apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from twdpo.errors import ModelError
from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.engines.capture import Recorder, recording, register
from twdpo.pipeline.annotate.prompt import JudgePrompt

#: Padded tokens in one forward pass, where no batch size is given.
_TOKENS_ON_CPU, _TOKENS_ON_ACCELERATOR = 2048, 32768


class TransformersEngine(Engine):
    """Reads attention from any decoder that uses transformers' attention interface.

    `batch_size`: prompts in one forward pass at the most; None lets a budget of tokens decide.
    Raises ModelError where the model has an attention of its own, out of this engine's reach.
    """

    def __init__(self, model: Any, *, batch_size: int | None = None) -> None:
        self._model = model
        self._config = model.config.get_text_config()
        self._device = model.device
        self._batch_size = batch_size
        self._token_budget = _TOKENS_ON_CPU if self._device.type == "cpu" else _TOKENS_ON_ACCELERATOR
        self._head = model.get_output_embeddings()
        if self._head is None:
            raise ModelError(f"{type(model).__name__} has no language-model head; use a causal language model")
        try:
            model.set_attn_implementation(register())
        except (ValueError, KeyError, ImportError, NotImplementedError):
            raise ModelError(_no_interface(model)) from None

    @property
    def num_layers(self) -> int:
        """How many decoder layers the model has."""
        return int(self._config.num_hidden_layers)

    @property
    def global_layers(self) -> tuple[int, ...]:
        """The full-attention layers, where sliding-window layers are mixed in; else all."""
        kinds = getattr(self._config, "layer_types", None)
        full = tuple(i for i, kind in enumerate(kinds or ()) if kind == "full_attention")
        return full or tuple(range(self.num_layers))

    def reach(self, layer: int) -> int | None:
        """The sliding window of a layer that has one."""
        window = getattr(self._config, "sliding_window", None)
        kinds = getattr(self._config, "layer_types", None)
        if not window or (kinds and kinds[layer] != "sliding_attention"):
            return None
        return int(window) if kinds or getattr(self._config, "use_sliding_window", True) else None

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        """One reading a prompt, in order; batches are formed by length."""
        readings: dict[int, Reading] = {}
        for batch in self._batches(prompts):
            readings |= zip(batch, self._run([prompts[i] for i in batch], layers, verdict_ids), strict=True)
        return [readings[i] for i in range(len(prompts))]

    def _batches(self, prompts: Sequence[JudgePrompt]) -> list[list[int]]:
        """Prompts of similar length together, longest first, within the budget."""
        batches: list[list[int]] = []
        width = 0
        for i in sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].ids), i)):
            full = self._batch_size or max(1, self._token_budget // max(width, 1))
            if not batches or len(batches[-1]) >= full:
                batches.append([])
                width = len(prompts[i].ids)
            batches[-1].append(i)
        return batches

    @torch.inference_mode()
    def _run(
        self, prompts: list[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts], device=self._device)
        ids = torch.zeros((len(prompts), int(lengths.max())), dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.ids)] = torch.from_numpy(prompt.ids.astype(np.int64))
        recorder = Recorder(layers, lengths - 1)
        with recording(recorder):
            logits = self._last_logits(ids.to(self._device), recorder.positions)
        if missing := sorted(recorder.layers - recorder.rows.keys()):
            raise ModelError(f"{_no_interface(self._model)} (layer {missing[0]} gave no attention)")
        rows = {layer: recorder.rows[layer].cpu().numpy() for layer in layers}
        verdicts = None if verdict_ids is None else logits[:, list(verdict_ids)].float().cpu().tolist()
        return [
            Reading(
                attention={
                    layer: (
                        row[i, prompt.answer_a.first : prompt.answer_a.last].copy(),
                        row[i, prompt.answer_b.first : prompt.answer_b.last].copy(),
                    )
                    for layer, row in rows.items()
                },
                verdict_logits=None if verdicts is None else (verdicts[i][0], verdicts[i][1]),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _last_logits(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Logits [batch, vocabulary] at `positions`: the head is given these positions' hidden states only.

        The model's own forward calls the head, so that what it does to logits afterwards (soft caps, scales) is done.
        """
        rows = torch.arange(len(ids), device=ids.device)

        def gather(_head: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (arguments[0][rows, positions][:, None], *arguments[1:])

        handle = self._head.register_forward_pre_hook(gather)
        try:
            output = self._model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        logits: Tensor = output.logits[:, -1]
        return logits


def _no_interface(model: Any) -> str:
    return (
        f"{type(model).__name__} does not use transformers' attention interface, so its attention cannot be read; "
        "use another judge"
    )
