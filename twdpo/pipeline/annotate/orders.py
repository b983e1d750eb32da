"""One pair of a cache judged again, for what the cache does not keep: the weights of each order by itself.

Not for: making caches (`run.py`), or showing the weights (`twdpo.inspect`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twdpo.errors import DataError, ModelError, UsageError
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.engines.base import Engine
from twdpo.pipeline.annotate.judge import Judge
from twdpo.pipeline.annotate.prompt import PromptError
from twdpo.pipeline.annotate.rows import make_row, order_weights
from twdpo.preferences import Pair
from twdpo.weights_cache import Recipe, SideWeights, WeightRow


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedAgain:
    """What judging a pair again gave: the row as the cache has it, and each side's weights in "cr" and in "rc"."""

    row: WeightRow
    chosen: tuple[SideWeights, SideWeights]
    rejected: tuple[SideWeights, SideWeights]


def judge_again(
    recipe: Recipe,
    pair: Pair | None,
    layers: Sequence[int],
    *,
    device: str = "auto",
    engine: Engine | None = None,
    tokenizer: Any = None,
) -> JudgedAgain:
    """Judge `pair` as `recipe` says, at `layers`. `engine` and `tokenizer` replace the model that it names.

    Raises UsageError where the recipe has no judge, DataError where there are no texts or they cannot be judged, and
    ModelError where the judge cannot be loaded or is another than the one that made the cache.
    """
    if recipe.source != "attention" or not recipe.judge_model:
        raise UsageError(
            f"--orders judges the pair again as --source attention does, and the weights of this cache are by "
            f"{recipe.source}"
        )
    if pair is None:
        raise DataError("--orders needs the texts of the pair: pass --dataset, or annotate with --include-text")
    judge = Judge.load(_config(recipe, layers, device), recipe.judge_template, engine, tokenizer)
    differences = [line for line in recipe.differences(judge.recipe) if not line.startswith("layers:")]
    if differences:
        raise ModelError(
            f"the judge {recipe.judge_model} is not the one that made this cache, so its orders would not be those of "
            f"the cache ({'; '.join(differences)})"
        )
    try:
        prompts = judge.builder.build(pair, "cr"), judge.builder.build(pair, "rc")
    except PromptError as error:
        raise DataError(f"the pair cannot be judged: {error}") from None
    first, second = judge.engine.read(prompts, judge.layers, judge.verdict_ids)
    orders = order_weights(prompts, (first, second), judge.layers)
    return JudgedAgain(row=make_row(pair, prompts, (first, second), judge.layers), **orders)


def _config(recipe: Recipe, layers: Sequence[int], device: str) -> AnnotateConfig:
    return AnnotateConfig(
        dataset="",
        model=recipe.judge_model,
        revision=recipe.judge_revision,
        dtype=recipe.dtype,
        device=device,
        max_length=recipe.max_length,
        layers=",".join(map(str, layers)),
        chat_template_kwargs=dict(recipe.chat_template_kwargs),
    )
