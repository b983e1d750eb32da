"""`attention`: the judge's attention at the moment of its verdict, mean of both orders; the method itself.

Not for: how attention is read (`twdpo.pipeline.annotate.engines`).
"""

from __future__ import annotations

from collections.abc import Sequence

from twdpo.pipeline.annotate.engines.base import Reading
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.prompt import JudgePrompt
from twdpo.pipeline.annotate.rows import make_row
from twdpo.pipeline.annotate.sources.base import Setup, WeightSource
from twdpo.preferences import Pair
from twdpo.weights_cache import WeightRow

#: The judge prompts of a pair in the orders "cr" and "rc", and what reading them gave.
Prompts = tuple[JudgePrompt, JudgePrompt]
Readings = tuple[Reading, Reading]


class AttentionSource(WeightSource[Prompts, Readings]):
    """Weights by a judge that reads both orders of a pair."""

    runs_on_vllm = True
    has_sink = True

    def __init__(self, setup: Setup) -> None:
        self.judge = self.load(setup)
        self.recipe = self.judge.recipe
        self.policy_model = setup.config.model

    def load(self, setup: Setup) -> Judge:
        """The judge that `setup` names. Raises what loading raises."""
        return Judge.load(setup.config, setup.template, setup.engine, setup.tokenizer)

    def prepare(self, pair: Pair) -> Prompts:
        """Both judge prompts. Raises PromptError."""
        return self.judge.builder.build(pair, "cr"), self.judge.builder.build(pair, "rc")

    def read(self, items: Sequence[Prompts]) -> list[Readings]:
        """The readings of both orders of each pair, which stand beside each other."""
        prompts = [prompt for both in items for prompt in both]
        readings = self.judge.engine.read(prompts, self.judge.layers, self.judge.verdict_ids)
        return list(zip(readings[::2], readings[1::2], strict=True))

    def row(self, pair: Pair, item: Prompts, found: Readings) -> WeightRow:
        """p in both orders, their mean, times the number of tokens."""
        return make_row(pair, item, found, self.judge.layers)

    def size(self, item: Prompts) -> int:
        """Judge tokens of both orders."""
        return sum(len(prompt.ids) for prompt in item)

    @property
    def window_tokens(self) -> int:
        """The engine's."""
        return self.judge.engine.window_tokens

    @property
    def peak_flops(self) -> float | None:
        """The engine's."""
        return self.judge.engine.peak_flops

    def flops(self, items: Sequence[Prompts]) -> float | None:
        """The engine's."""
        prompts = [prompt for both in items for prompt in both]
        return self.judge.engine.flops(prompts, self.judge.layers, verdict=self.judge.verdict_ids is not None)
