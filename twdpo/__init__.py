"""Token-weighted DPO with token weights read off a language model's own attention.

    import twdpo

    twdpo.annotate(twdpo.AnnotateConfig(dataset="demo", out="weights_cache"))
    twdpo.train(twdpo.TrainConfig(weights="weights_cache", out="trained"))

Names are imported when first used: `import twdpo` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo import inspect as inspect
    from twdpo.errors import TwdpoError
    from twdpo.pipeline.annotate import AnnotateConfig, AnnotateResult, annotate
    from twdpo.pipeline.train import TrainConfig, TrainResult, train
    from twdpo.preferences import Message, Pair, load, resolve
    from twdpo.weights_cache import WeightsCache, verify

__version__ = "0.1.0"

__all__ = [
    "AnnotateConfig",
    "AnnotateResult",
    "Message",
    "Pair",
    "TrainConfig",
    "TrainResult",
    "TwdpoError",
    "WeightsCache",
    "annotate",
    "load",
    "resolve",
    "train",
    "verify",
]

_HOMES = {
    "AnnotateConfig": "pipeline.annotate",
    "AnnotateResult": "pipeline.annotate",
    "Message": "preferences",
    "Pair": "preferences",
    "TrainConfig": "pipeline.train",
    "TrainResult": "pipeline.train",
    "TwdpoError": "errors",
    "WeightsCache": "weights_cache",
    "annotate": "pipeline.annotate",
    "load": "preferences",
    "resolve": "preferences",
    "train": "pipeline.train",
    "verify": "weights_cache",
}


#: A package that is used by its own name: `twdpo.inspect.show(...)`.
_PACKAGES = ("inspect",)


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
