"""Stage one: judge prompts, engines, attention to weights, the run.

result = annotate(AnnotateConfig(dataset="demo"))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.pipeline.annotate.config import AnnotateConfig
    from twdpo.pipeline.annotate.progress import AnnotateProgress
    from twdpo.pipeline.annotate.run import AnnotateResult, annotate

__all__ = ["AnnotateConfig", "AnnotateProgress", "AnnotateResult", "annotate"]

_HOMES = {"AnnotateConfig": "config", "AnnotateProgress": "progress", "AnnotateResult": "run", "annotate": "run"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
