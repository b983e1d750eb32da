"""The cache of token weights: Parquet shards keyed by example hash, with a manifest and a data-set card.

Needs numpy and pyarrow only. Not for: computing weights (`pipeline/annotate`) or training with them
(`pipeline/train`). Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.weights_cache.manifest import Manifest
    from twdpo.weights_cache.mantissa import round_mantissa
    from twdpo.weights_cache.reader import WeightsCache
    from twdpo.weights_cache.recipe import Recipe
    from twdpo.weights_cache.reference import ReferenceStore
    from twdpo.weights_cache.rejects import Reject, read_rejects, reject_key
    from twdpo.weights_cache.rows import SideWeights, WeightRow
    from twdpo.weights_cache.schema import SCHEMA_VERSION
    from twdpo.weights_cache.verification import VerifyReport, verify
    from twdpo.weights_cache.writer import CacheWriter

__all__ = [
    "SCHEMA_VERSION",
    "CacheWriter",
    "Manifest",
    "Recipe",
    "ReferenceStore",
    "Reject",
    "SideWeights",
    "VerifyReport",
    "WeightRow",
    "WeightsCache",
    "read_rejects",
    "reject_key",
    "round_mantissa",
    "verify",
]

_HOMES = {
    "SCHEMA_VERSION": "schema",
    "CacheWriter": "writer",
    "Manifest": "manifest",
    "Recipe": "recipe",
    "ReferenceStore": "reference",
    "Reject": "rejects",
    "SideWeights": "rows",
    "VerifyReport": "verification",
    "WeightRow": "rows",
    "WeightsCache": "reader",
    "read_rejects": "rejects",
    "reject_key": "rejects",
    "round_mantissa": "mantissa",
    "verify": "verification",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
