"""Comparing ways of weighting tokens: the same pairs, order and summed weight, every arm at every beta and seed.

    comparison = compare(load_config("compare.yaml"))

Importing this package imports neither torch nor transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.evaluate.compare.arms import Arm
    from twdpo.evaluate.compare.config import CompareConfig, load_config
    from twdpo.evaluate.compare.frontier import Frontier
    from twdpo.evaluate.compare.run import Comparison, Watch, compare

__all__ = ["Arm", "CompareConfig", "Comparison", "Frontier", "Watch", "compare", "load_config"]

_HOMES = {
    "Arm": "arms",
    "CompareConfig": "config",
    "Comparison": "run",
    "Frontier": "frontier",
    "Watch": "run",
    "compare": "run",
    "load_config": "config",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
