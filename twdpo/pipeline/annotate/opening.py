"""The cache of a run of stage one, begun or gone on with. Not for: what is written into it (`judging.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twdpo.config import to_yaml
from twdpo.pipeline.annotate.config import AnnotateConfig
from twdpo.pipeline.annotate.sources.base import WeightSource
from twdpo.weights_cache import CacheWriter
from twdpo.weights_cache.durable import write_file


def open_cache(config: AnnotateConfig, source: WeightSource[Any, Any], dataset: Mapping[str, Any]) -> CacheWriter:
    """The cache that `config` names, `dataset` among its data sets, and `config` beside it but for its part.

    Raises what opening a cache raises.
    """
    defaults = {"attn_source": str(source.recipe.layers[-1]), "policy_model": source.policy_model}
    sink = {} if source.has_sink else {"sink_fix": False}
    writer = CacheWriter.open(
        Path(config.out),
        source.recipe,
        dataset=dataset,
        defaults={name: value for name, value in defaults.items() if value is not None} | sink,
        include_text=config.include_text,
    )
    write_file(Path(config.out) / "annotate.yaml", to_yaml(replace(config, shard=None)).encode())
    return writer
