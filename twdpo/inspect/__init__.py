"""Looking at a cache: single pairs in the terminal and in notebooks, reports, plots.

    twdpo.inspect.show("weights_cache", "random")      a pair, shaded, in a notebook
    twdpo.inspect.to_pandas("weights_cache")           a row a pair
    twdpo.inspect.write_report("weights_cache", "r.html") a page to open in a browser

Figures over all of it: `twdpo.weights_cache.statistics`. Names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.inspect.frames import to_pandas
    from twdpo.inspect.notebook import PairView, show
    from twdpo.inspect.pictures import write_report

__all__ = ["PairView", "show", "to_pandas", "write_report"]

_HOMES = {"PairView": "notebook", "show": "notebook", "to_pandas": "frames", "write_report": "pictures"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
