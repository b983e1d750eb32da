"""Weights that other people published become a cache like any other: AttentionPO's data sets and TIS-DPO's files.

result = import_weights(ImportConfig(dataset="AttentionPO/llama-3-8b-dataset", out="weights_cache"))

Not for: computing weights (`pipeline/annotate`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.pipeline.importing.config import ImportConfig
    from twdpo.pipeline.importing.run import ImportProgress, ImportResult, import_weights

__all__ = ["ImportConfig", "ImportProgress", "ImportResult", "import_weights"]

_HOMES = {"ImportConfig": "config", "ImportProgress": "run", "ImportResult": "run", "import_weights": "run"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
