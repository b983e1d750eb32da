"""What the benchmarks that need no judge write their caches with."""

from __future__ import annotations

from collections.abc import Sequence

from twdpo.weights_cache import Recipe


def synthetic_recipe(layers: Sequence[int]) -> Recipe:
    """The recipe of weights that no judge gave."""
    return Recipe(
        judge_model="synthetic",
        judge_revision=None,
        dtype="float32",
        judge_template="",
        chat_template_hash=None,
        max_length=2048,
        layers=tuple(layers),
    )
