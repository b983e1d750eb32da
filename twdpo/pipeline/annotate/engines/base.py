"""What stage one asks of an engine: raw attention of the reading position, and the verdict's logits.

An engine knows a model and nothing of pairs, weights or caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twdpo.pipeline.annotate.prompt import JudgePrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one judge prompt gave.

    attention: per wanted layer the reading position's softmax attention, mean over heads, on answer A and on
    answer B; float32[tokens of the answer] each. verdict_logits: of the verdicts A and B, None where not asked for.
    """

    attention: Mapping[int, tuple[NDArray[np.float32], NDArray[np.float32]]]
    verdict_logits: tuple[float, float] | None


class Engine(ABC):
    """Runs judge prompts through a model."""

    @property
    @abstractmethod
    def num_layers(self) -> int:
        """How many decoder layers the model has."""

    @property
    def global_layers(self) -> tuple[int, ...]:
        """The layers whose attention reaches over the whole prompt."""
        return tuple(range(self.num_layers))

    def reach(self, layer: int) -> int | None:
        """How many tokens back a layer attends, None for the whole prompt."""
        return None

    @property
    def window_tokens(self) -> int:
        """How many tokens of prompts `read` wants at once, at the least, to be fast."""
        return 0

    @property
    def peak_flops(self) -> float | None:
        """Floating-point operations that the device can do in a second, None where that is not known."""
        return None

    def flops(self, prompts: Sequence[JudgePrompt], layers: Sequence[int], *, verdict: bool) -> float | None:
        """Floating-point operations that `read` needs for these prompts, None where it does not say."""
        return None

    @abstractmethod
    def read(
        self, prompts: Sequence[JudgePrompt], layers: Sequence[int], verdict_ids: tuple[int, int] | None
    ) -> list[Reading]:
        """One reading a prompt, in order; both orders of a pair stand beside each other.

        verdict_ids: the tokens of the verdicts A and B; None where the verdict is not asked for, and an engine may then
        stop at the deepest of `layers`. Raises ModelError where the model cannot give its attention.
        """
