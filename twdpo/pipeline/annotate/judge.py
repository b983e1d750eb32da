"""The judge of a run, ready to read prompts: engine, prompt builder, layers, and the recipe that they make.

Not for: which pairs are judged (`run.py`), or what a row holds (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twdpo.errors import UsageError
from twdpo.pipeline.annotate.config import AnnotateConfig, parse_layers
from twdpo.pipeline.annotate.engines.base import Engine
from twdpo.pipeline.annotate.prompt import TEMPLATE_TOKENS, PromptBuilder
from twdpo.weights_cache import Recipe

if TYPE_CHECKING:
    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine

_ORDERS = ("cr", "rc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What stays the same for a whole run."""

    engine: Engine
    builder: PromptBuilder
    layers: tuple[int, ...]
    verdict_ids: tuple[int, int] | None
    recipe: Recipe

    @classmethod
    def load(
        cls,
        config: AnnotateConfig,
        template: str,
        engine: Engine | None,
        tokenizer: Any,
        *,
        kind: type[TransformersEngine] | None = None,
    ) -> Judge:
        """Load what `config` names, unless `engine` and `tokenizer` are given; raises what loading raises.

        kind: the engine's class where it is not vLLM's, None for the transformers engine itself.
        """
        revision, dtype = None, "float32"
        if engine is None:
            engine, tokenizer, revision, dtype = _load_engine(config, kind)
        builder, kwargs = builder_of(config, template, tokenizer)
        layers = parse_layers(config.layers, engine.num_layers, engine.global_layers)
        for layer in layers:
            reach = engine.reach(layer)
            if reach is not None and reach < config.max_length:
                raise UsageError(
                    f"layer {layer} of the judge attends over {reach} tokens only and cannot see prompts of "
                    f"--max-length {config.max_length}; choose other --layers or a smaller --max-length"
                )
        recipe = recipe_of(config, template, builder, kwargs, revision=revision, dtype=dtype, layers=layers)
        verdict_ids = builder.verdict_ids() if config.verdict else None
        return cls(engine=engine, builder=builder, layers=layers, verdict_ids=verdict_ids, recipe=recipe)


def builder_of(config: AnnotateConfig, template: str, tokenizer: Any) -> tuple[PromptBuilder, dict[str, Any]]:
    """What makes the judge prompts of a run, and the arguments of the chat template."""
    kwargs = chat_template_arguments(tokenizer, config)
    builder = PromptBuilder(tokenizer, template=template, max_length=config.max_length, chat_template_kwargs=kwargs)
    return builder, kwargs


def recipe_of(
    config: AnnotateConfig,
    template: str,
    builder: PromptBuilder,
    kwargs: Mapping[str, Any],
    *,
    revision: str | None,
    dtype: str,
    layers: tuple[int, ...],
    source_options: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of a run of the source that `config` names, whose tokens are those of judge prompts."""
    return Recipe(
        source=config.source,
        source_options=source_options or {},
        judge_model=config.model,
        judge_revision=revision,
        dtype=dtype,
        judge_template=template,
        chat_template_hash=builder.frame_hash,
        chat_template_kwargs=kwargs,
        max_length=config.max_length,
        answer_tokens=builder.answer_tokens,
        template_tokens=TEMPLATE_TOKENS,
        orders=_ORDERS,
        layers=layers,
    )


def _load_engine(config: AnnotateConfig, kind: type[TransformersEngine] | None) -> tuple[Engine, Any, str | None, str]:
    """The engine, its tokenizer, and the model's revision and dtype."""
    if config.engine == "vllm":
        return _load_vllm(config)
    from twdpo.pipeline.annotate.engines.transformers import TransformersEngine
    from twdpo.pipeline.models import load_model

    loaded = load_model(
        config.model,
        dtype=config.dtype,
        device=config.device,
        device_map=config.device_map,
        revision=config.revision,
        trust_remote_code=config.trust_remote_code,
    )
    require_context(loaded.model.config, config.max_length)
    engine = (kind or TransformersEngine)(loaded.model, batch_size=config.batch_size)
    return engine, loaded.tokenizer, loaded.revision, loaded.dtype


def _load_vllm(config: AnnotateConfig) -> tuple[Engine, Any, str | None, str]:
    from twdpo.pipeline.annotate.engines.vllm import GPU_MEMORY, VllmOptions, load_vllm

    options = VllmOptions(
        model=config.model,
        revision=config.revision,
        dtype=config.dtype,
        device=config.device,
        max_length=config.max_length,
        batch_size=config.batch_size,
        tensor_parallel=config.tensor_parallel or 1,
        gpu_memory_utilization=config.gpu_memory_utilization or GPU_MEMORY,
        trust_remote_code=config.trust_remote_code,
    )
    loaded = load_vllm(options, check=lambda model: require_context(model, config.max_length))
    return loaded.engine, loaded.tokenizer, loaded.revision, loaded.dtype


def require_context(model: Any, max_length: int) -> None:
    """Raise UsageError where a model's configuration has room for fewer tokens than a judge prompt may have."""
    from twdpo.pipeline.models import context_length

    context = context_length(model)
    if context is not None and context < max_length:
        raise UsageError(
            f"--max-length {max_length} is more than the judge's context of {context} tokens; "
            f"use --max-length {context}"
        )


def chat_template_arguments(tokenizer: Any, config: AnnotateConfig) -> dict[str, Any]:
    """What is passed to the judge's chat template. A judge that can think first is asked for the verdict at once."""
    if config.chat_template_kwargs is not None:
        return dict(config.chat_template_kwargs)
    template = getattr(tokenizer, "chat_template", None)
    return {"enable_thinking": False} if "enable_thinking" in str(template) else {}
