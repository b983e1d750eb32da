"""The counts in a cache's manifest, brought up to what its shards and rejects hold.

Not for: knowing what is done, which the hashes in finished shards say (`writer.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twdpo.weights_cache.card import write_card
from twdpo.weights_cache.durable import locked, storing
from twdpo.weights_cache.index import ShardIndex
from twdpo.weights_cache.manifest import DATA, Manifest
from twdpo.weights_cache.rejects import read_rejects
from twdpo.weights_cache.shards import ShardKind, read_columns


def refresh_counts(folder: Path) -> Manifest:
    """Bring the counts of a cache's manifest and card up to its shards; raises StorageError, or CacheCorrupt."""
    with storing(folder), locked(folder):
        return save_changes(folder, counts=_count(folder, Manifest.load(folder)))


def save_changes(folder: Path, **changes: Any) -> Manifest:
    """Write a cache's manifest and card with some fields changed, if they are; the caller holds the folder's lock."""
    # As it is now: another worker may have added a source since.
    old = Manifest.load(folder)
    new = replace(old, **changes)
    if new != old:
        # In this order: after a kill in between, the manifest still differs.
        write_card(folder, new)
        new.save(folder)
    return new


def _count(folder: Path, manifest: Manifest) -> dict[str, int]:
    kind = ShardKind(kind="weights", fingerprint=manifest.fingerprint)
    index = ShardIndex(folder / DATA, kind)
    flags = [read_columns(path, kind, ["truncated"]).column(0).to_numpy() for path in index.shards]
    truncated = np.concatenate([np.empty(0, dtype=bool), *flags])[index.first_rows()]
    return {
        "pairs": len(index),
        "rejected": len(read_rejects(folder)),
        "shards": len(index.shards),
        "truncated": int(truncated.sum()),
    }
