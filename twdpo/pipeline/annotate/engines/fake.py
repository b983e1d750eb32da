"""A fake engine for tests: attention is a hash of the token ids, so runs are fast, repeatable and need no model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.annotate.engines.base import Engine, Reading
from twdpo.pipeline.annotate.prompt import AnswerSpan, JudgePrompt


class FakeEngine(Engine):
    """An engine of `num_layers` layers whose numbers depend on the prompt alone."""

    def __init__(self, num_layers: int = 4) -> None:
        self._num_layers = num_layers

    @property
    def num_layers(self) -> int:
        """As many as it was made with."""
        return self._num_layers

    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        """Positive pseudo-random attention that sums to less than 1 over the prompt."""
        return [self._reading(prompt, layers, verdict=verdict_ids is not None) for prompt in prompts]

    def _reading(self, prompt: JudgePrompt, layers: Sequence[int], *, verdict: bool) -> Reading:
        seed = zlib.crc32(prompt.ids.tobytes())

        def attention(layer: int, span: AnswerSpan) -> NDArray[np.float32]:
            rng = np.random.default_rng([seed, layer, span.first])
            return (rng.random(span.last - span.first) / len(prompt.ids)).astype(np.float32)

        logits = np.random.default_rng(seed).normal(size=2)
        return Reading(
            attention={
                layer: (attention(layer, prompt.answer_a), attention(layer, prompt.answer_b)) for layer in layers
            },
            verdict_logits=(float(logits[0]), float(logits[1])) if verdict else None,
        )
