"""Reference log-probs of every example: read from their store, computed before training where they are not there.

Kept per token, so that another layer, sink fix or beta needs no new pass. Not for: the store's files
(`weights_cache/reference.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twdpo.errors import CacheCorrupt, Interrupted
from twdpo.pipeline.models import LoadedModel
from twdpo.pipeline.train.batches import micro_batches
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.layouts import Logps, collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.ranks import Ranks
from twdpo.pipeline.train.render import Renderer
from twdpo.weights_cache import ReferenceStore


def open_store(folder: Path, loaded: LoadedModel, renderer: Renderer, dtype: str) -> ReferenceStore:
    """The store for this model, rendering and precision: a folder of its own below `folder`."""
    description: dict[str, Any] = {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": dtype,
        "max_length": renderer.max_length,
        "rendering": renderer.fingerprint,
    }
    # A model is what its files say, wherever they lie; a name counts only where nothing better is known.
    identity = description if loaded.revision is None else {k: v for k, v in description.items() if k != "model"}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return ReferenceStore.open(folder / fingerprint, fingerprint, description)


def reference_logps(
    examples: Sequence[Example],
    model: TokenLogps,
    store: ReferenceStore,
    progress: TrainProgress,
    *,
    pairs: int | None,
    tokens: int,
    ranks: Ranks,
) -> None:
    """Add what `store` lacks of this process's part of `examples`; pairs, tokens: as in `micro_batches`.

    All processes must have opened the store before one of them comes here, so that they see the same lack.
    Raises Interrupted on Ctrl-C, after what was computed has been written.
    """
    lacking = {example.example_hash: example for example in examples if example.example_hash not in store}
    mine = sorted(lacking.values(), key=lambda example: (example.longest, example.example_hash))
    mine = mine[ranks.rank :: ranks.count]
    progress.start("reference", len(mine))
    device = ranks.accelerator.device
    with store, _interruptible(store):
        groups = micro_batches(mine, pairs, tokens, model.layout)
        for group, counts in ranks.evened(groups, next(iter(examples))):
            batch = collate(group, None, device, model.layout)
            with torch.no_grad():
                logps_2PC = batch.spread(model(**batch.inputs)).cpu().numpy()
            for i, example in enumerate(group if counts else ()):
                chosen = logps_2PC[i, : len(example.chosen.weights)]
                store.add(example.example_hash, chosen, logps_2PC[i + len(group), : len(example.rejected.weights)])
            progress.advance("reference", len(group) if counts else 0)
    progress.finish("reference")


def read_reference(examples: Sequence[Example], store: ReferenceStore) -> Mapping[str, Logps]:
    """Hash → (chosen, rejected) log-probs of all examples. Raises CacheCorrupt where they do not fit the tokens."""
    found: dict[str, Logps] = {}
    for example in examples:
        logps = store.get(example.example_hash)
        wanted = tuple(len(side.weights) for side in (example.chosen, example.rejected))
        if tuple(map(len, logps)) != wanted or not all(np.isfinite(side).all() for side in logps):
            raise CacheCorrupt(
                f"{store.folder} holds log-probs of other tokens for pair {example.example_hash}; delete that folder"
            )
        found[example.example_hash] = logps
    return found


@contextmanager
def _interruptible(store: ReferenceStore) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped while computing reference log-probs; those in {store.folder} are kept: "
            "run the same command again to go on"
        ) from None
