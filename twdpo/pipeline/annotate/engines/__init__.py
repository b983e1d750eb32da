"""Engines run judge prompts through a model: `transformers` for real, `fake` for tests."""

from twdpo.pipeline.annotate.engines.base import Engine, Reading

__all__ = ["Engine", "Reading"]
