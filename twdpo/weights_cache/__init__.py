"""The cache of token weights: Parquet shards keyed by example hash, with a manifest and a data-set card.

Needs numpy and pyarrow only. Not for: computing weights (`pipeline/annotate`) or training with them
(`pipeline/train`). Names are imported when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twdpo.weights_cache.compaction import CompactResult, compact
    from twdpo.weights_cache.exporting import ExportResult, export
    from twdpo.weights_cache.manifest import Manifest
    from twdpo.weights_cache.mantissa import round_mantissa
    from twdpo.weights_cache.merging import MergeResult, merge
    from twdpo.weights_cache.pulling import PullResult, pull
    from twdpo.weights_cache.reader import WeightsCache
    from twdpo.weights_cache.recipe import Recipe
    from twdpo.weights_cache.reference import ReferenceStore
    from twdpo.weights_cache.rejects import Reject, read_rejects, reject_key
    from twdpo.weights_cache.rows import SideWeights, WeightRow
    from twdpo.weights_cache.schema import SCHEMA_VERSION
    from twdpo.weights_cache.sharing import PushResult, push
    from twdpo.weights_cache.statistics import CacheSummary, summarize
    from twdpo.weights_cache.verification import VerifyReport, verify
    from twdpo.weights_cache.writer import CacheWriter

__all__ = [
    "SCHEMA_VERSION",
    "CacheSummary",
    "CacheWriter",
    "CompactResult",
    "ExportResult",
    "Manifest",
    "MergeResult",
    "PullResult",
    "PushResult",
    "Recipe",
    "ReferenceStore",
    "Reject",
    "SideWeights",
    "VerifyReport",
    "WeightRow",
    "WeightsCache",
    "compact",
    "export",
    "merge",
    "pull",
    "push",
    "read_rejects",
    "reject_key",
    "round_mantissa",
    "summarize",
    "verify",
]

_HOMES = {
    "SCHEMA_VERSION": "schema",
    "CacheSummary": "statistics",
    "CacheWriter": "writer",
    "CompactResult": "compaction",
    "ExportResult": "exporting",
    "Manifest": "manifest",
    "MergeResult": "merging",
    "PullResult": "pulling",
    "PushResult": "sharing",
    "Recipe": "recipe",
    "ReferenceStore": "reference",
    "Reject": "rejects",
    "SideWeights": "rows",
    "VerifyReport": "verification",
    "WeightRow": "rows",
    "WeightsCache": "reader",
    "compact": "compaction",
    "export": "exporting",
    "merge": "merging",
    "pull": "pulling",
    "push": "sharing",
    "read_rejects": "rejects",
    "reject_key": "rejects",
    "round_mantissa": "mantissa",
    "summarize": "statistics",
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
