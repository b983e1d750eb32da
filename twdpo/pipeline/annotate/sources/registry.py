"""Which weight sources there are: our own, and those that installed packages register as entry points.

    [project.entry-points."twdpo.weight_sources"]
    heads = "my_package.sources:Heads"

Modules are imported when their source is asked for. Not for: what a source does.
"""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from twdpo.errors import UsageError, first_line
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.prompt import load_template
from twdpo.pipeline.annotate.sources.base import Setup, WeightSource
from twdpo.pipeline.annotate.sources.options import parse_options

GROUP = "twdpo.weight_sources"
_HERE = "twdpo.pipeline.annotate.sources"

#: Name → module and class.
OWN = {
    "attention": f"{_HERE}.attention:AttentionSource",
    "uniform": f"{_HERE}.tokens:UniformSource",
    "position": f"{_HERE}.tokens:PositionSource",
    "rollout": f"{_HERE}.rollout:RolloutSource",
    "tis": f"{_HERE}.tis:TisSource",
    "shuffled": f"{_HERE}.controls:ShuffledSource",
    "random": f"{_HERE}.controls:RandomSource",
}

#: What a cache has decided that `--base` names.
_OF_A_BASE = (
    "revision",
    "layers",
    "max_length",
    "judge_template",
    "chat_template_kwargs",
    "device_map",
    "trust_remote_code",
    "verdict",
)


def source_names() -> tuple[str, ...]:
    """All sources that can be asked for, our own first."""
    return (*OWN, *sorted(set(_registered()) - set(OWN)))


def source_class(name: str) -> type[WeightSource[Any, Any]]:
    """The class of a source. Raises UsageError where there is none, or where what is registered cannot be used."""
    if name in OWN:
        module, _, attribute = OWN[name].partition(":")
        found: Any = getattr(import_module(module), attribute)
        return found  # type: ignore[no-any-return]
    registered = _registered()
    if name not in registered:
        raise UsageError(f"--source {name} is not known; choose one of {', '.join(source_names())}")
    try:
        found = registered[name].load()
    except Exception as error:  # another package's code, which raises what it likes
        raise UsageError(
            f"--source {name} cannot be loaded from {registered[name].value} "
            f"({type(error).__name__}: {first_line(error)}); mend or remove the package that registers it"
        ) from None
    if not (isinstance(found, type) and issubclass(found, WeightSource)):
        raise UsageError(f"--source {name}: {registered[name].value} is no subclass of WeightSource")
    return found


def check_source(config: AnnotateConfig) -> tuple[type[WeightSource[Any, Any]], Any]:
    """The class and the options of the source that `config` names, before anything is loaded. Raises UsageError."""
    load_template(config.judge_template)
    kind = source_class(config.source)
    options = parse_options(config.source_options, kind.Options, config.source)
    if config.base is not None and not kind.takes_base:
        able = ", ".join(name for name in OWN if source_class(name).takes_base)
        raise UsageError(f"--base is for sources that rework a cache ({able}), not for --source {config.source}")
    if config.engine == "vllm" and not (runs_model(config) and kind.runs_on_vllm):
        why = "cannot be read in vLLM" if runs_model(config) else "runs no model"
        raise UsageError(f"--source {config.source} {why}: leave --engine vllm out")
    refused = _OF_A_BASE if config.base is not None else kind.refuses
    defaults = {field.name: field.default for field in fields(config)}
    for name in refused:
        if getattr(config, name) != defaults[name]:
            why = (
                "that is as --base has it"
                if config.base is not None
                else f"it says nothing to --source {config.source}"
            )
            flag = f"--{'no-' * (defaults[name] is True)}{name.replace('_', '-')}"
            raise UsageError(f"leave {flag} out: {why}")
    return kind, options


def runs_model(config: AnnotateConfig) -> bool:
    """Whether weighing as `config` asks takes a model, or texts and what is stored alone. Raises UsageError."""
    return config.base is None and source_class(config.source).needs_model


def open_source(config: AnnotateConfig, *, engine: Any = None, tokenizer: Any = None) -> WeightSource[Any, Any]:
    """The source that `config` names, ready to weigh. `engine` and `tokenizer` replace what it would load.

    Raises UsageError, and what loading raises.
    """
    kind, options = check_source(config)
    template = load_template(config.judge_template)
    return kind(Setup(config=config, options=options, template=template, engine=engine, tokenizer=tokenizer))


def _registered() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
