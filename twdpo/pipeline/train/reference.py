"""Reference log-probs of every example: read from their store, computed before training where they are not there.

Kept per token, so that another layer, sink fix or beta needs no new pass. Not for: the store's files
(`weights_cache/reference.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twdpo.errors import CacheCorrupt, Interrupted
from twdpo.pipeline.models import LoadedModel
from twdpo.pipeline.train.adapters import adapters_off
from twdpo.pipeline.train.batches import micro_batches
from twdpo.pipeline.train.config import TrainConfig
from twdpo.pipeline.train.data import Example
from twdpo.pipeline.train.feed import Feed, no_reference
from twdpo.pipeline.train.layouts import Logps, collate
from twdpo.pipeline.train.logps import TokenLogps
from twdpo.pipeline.train.progress import TrainProgress
from twdpo.pipeline.train.ranks import Ranks
from twdpo.pipeline.train.render import Renderer
from twdpo.weights_cache import ReferenceStore


class NoReference:
    """In the place of a store for losses without a reference: lacks nothing, and stands for zeros."""

    def __contains__(self, example_hash: object) -> bool:
        return True


Reference = ReferenceStore | NoReference


def prepare_reference(
    config: TrainConfig,
    ranks: Ranks,
    loaded: LoadedModel,
    model: TokenLogps,
    renderer: Renderer,
    feed: Feed,
    progress: TrainProgress,
) -> Reference:
    """The store with the log-probs of all pairs, of which each process computes a part of what it lacks."""
    if not config.objective.reference:
        nothing = NoReference()
        for _ in feed.lacking(nothing):  # the feed comes to know its pairs on the way
            pass
        return nothing
    with ranks.accord():
        store = open_store(config.reference_folder, loaded, renderer, config.dtype)
    reference_logps(
        feed.lacking(store),
        model,
        store,
        progress,
        pairs=config.micro_batch_size,
        tokens=ranks.token_budget,
        ranks=ranks,
        spare=feed.spare,
    )
    ranks.wait()
    with ranks.accord():
        return open_store(config.reference_folder, loaded, renderer, config.dtype)


def open_store(folder: Path, loaded: LoadedModel, renderer: Renderer, dtype: str) -> ReferenceStore:
    """The store for this model, rendering and precision: a folder of its own below `folder`."""
    description: dict[str, Any] = {
        "model": loaded.name,
        "revision": loaded.revision,
        "dtype": dtype,
        "max_length": renderer.max_length,
        "rendering": renderer.fingerprint,
    }
    # A base held in fewer bits than it computes with gives numbers of its own; adapters, being off, do not count.
    if loaded.dtype != "float32":
        description["parameters"] = loaded.dtype
    if loaded.quantization is not None:
        description["quantization"] = loaded.quantization
    # A model is what its files say, wherever they lie; a name counts only where nothing better is known.
    identity = description if loaded.revision is None else {k: v for k, v in description.items() if k != "model"}
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return ReferenceStore.open(folder / fingerprint, fingerprint, description)


def reference_logps(
    lacking: Iterable[Sequence[Example]],
    model: TokenLogps,
    store: ReferenceStore,
    progress: TrainProgress,
    *,
    pairs: int | None,
    tokens: int,
    ranks: Ranks,
    spare: Example,
) -> None:
    """Add to `store` what it is `lacking`, part by part; pairs, tokens: as in `micro_batches`.

    Adapters are off meanwhile: the reference is the base, however far they have been trained. spare: what a process
    computes that has nothing left while others have, where none can do a forward pass alone.
    Raises Interrupted on Ctrl-C, after what was computed has been written.
    """
    device = ranks.accelerator.device
    with store, _interruptible(store), adapters_off(model):
        parts = (micro_batches(part, pairs, tokens, model.layout) for part in lacking)
        for group, counts in (each for groups in parts for each in ranks.evened(groups, spare)):
            batch = collate(group, None, device, model.layout)
            with torch.no_grad():
                logps_2PC = batch.spread(model(**batch.inputs)).cpu().numpy()
            for i, example in enumerate(group if counts else ()):
                chosen = logps_2PC[i, : len(example.chosen.weights)]
                store.add(example.example_hash, chosen, logps_2PC[i + len(group), : len(example.rejected.weights)])
            progress.advance("reference", len(group) if counts else 0)


def read_reference(examples: Sequence[Example], store: Reference) -> dict[str, Logps]:
    """Hash → (chosen, rejected) log-probs of all examples. Raises CacheCorrupt where they do not fit the tokens."""
    found: dict[str, Logps] = {}
    for example in examples:
        if isinstance(store, NoReference):
            found |= no_reference(example)
            continue
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
