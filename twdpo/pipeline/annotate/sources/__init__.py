"""Weight sources: attention and what it is compared with. A source of your own: `docs/sources.md`.

source = open_source(AnnotateConfig(dataset="demo", source="position", source_options="gamma=0.95"))
"""

from __future__ import annotations

from twdpo.pipeline.annotate.sources.base import NoOptions, Setup, WeightSource
from twdpo.pipeline.annotate.sources.registry import check_source, open_source, runs_model, source_class, source_names
from twdpo.pipeline.annotate.sources.tokens import Answer, TokenSource

__all__ = [
    "Answer",
    "NoOptions",
    "Setup",
    "TokenSource",
    "WeightSource",
    "check_source",
    "open_source",
    "runs_model",
    "source_class",
    "source_names",
]
