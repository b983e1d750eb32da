"""`rollout`: attention rolled out through all layers in place of one layer's; else as `attention`.

Not for: the rollout itself (`twdpo.pipeline.annotate.engines.rollout`).
"""

from __future__ import annotations

from dataclasses import replace

from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.sources.attention import AttentionSource
from twdpo.pipeline.annotate.sources.base import Setup


class RolloutSource(AttentionSource):
    """Weights by attention rollout to the reading position, at the last layer unless `--layers` names others."""

    runs_on_vllm = False

    def load(self, setup: Setup) -> Judge:
        """The judge, read by another engine. Raises what loading raises."""
        from twdpo.pipeline.annotate.engines.rollout import RolloutEngine

        config = replace(setup.config, layers=setup.config.layers or "-1")
        return Judge.load(config, setup.template, setup.engine, setup.tokenizer, kind=RolloutEngine)
