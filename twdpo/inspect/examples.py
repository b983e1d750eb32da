"""One pair of a cache with its texts: found by hash, number or chance.

Not for: how it is drawn (`views.py`, `notebook.py`), or the texts of many pairs.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from twdpo.errors import CacheError, DataError, UsageError
from twdpo.preferences import Message, Pair, Source, load, parse_row, resolve
from twdpo.weights_cache import Manifest, WeightRow, WeightsCache
from twdpo.weights_cache.card import fits
from twdpo.weights_cache.transforms import parse_attn_source

#: Rows of a data set looked at for a pair to draw.
_LOOKED_AT = 4096
#: From so many digits on, what could be a number is a hash.
_HASH_DIGITS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of the cache and its pair; `pair` is None where its texts cannot be found.

    number: the row's place in the cache, as `WeightsCache.rows` counts; −1 where it is not known.
    """

    row: WeightRow
    pair: Pair | None
    number: int = -1


def find_example(cache: WeightsCache, which: str, *, dataset: str | None = None, split: str | None = None) -> Example:
    """The pair that `which` names: a hash or its beginning, a 0-based number in cache order, or `random`.

    Texts come from the cache where it holds them, else from `dataset` or the sources in the manifest. Raises UsageError
    where there is no such pair or several, and what reading `dataset` raises.
    """
    if split is not None and dataset is None:
        raise UsageError(f"--split {split} is of no data set; name it with --dataset")
    number = _find_number(cache, which)
    [row] = cache.rows_at(np.array([number]))
    return Example(row=row, pair=_find_pair(cache, row, number, dataset, split), number=number)


def default_layers(manifest: Manifest, source: str | None = None) -> tuple[int, ...]:
    """The layers that `source` names (`29`, `mean`, `mean:7,15`, `last`); None for the cache's own default.

    That is what stage two takes where nothing else is said, or the deepest stored layer. Raises UsageError.
    """
    stored = manifest.recipe.layers
    if source is not None:
        return parse_attn_source(source, stored, option="--layer")
    with suppress(UsageError):
        return parse_attn_source(str(manifest.defaults.get("attn_source", "last")), stored)
    return stored[-1:]


def open_for(folder: Path | str, source: str | None = None, *, text: bool) -> WeightsCache:
    """The cache in `folder`, open for the layers of `source` alone (see `default_layers`).

    Raises UsageError, and what opening a cache raises.
    """
    layers = default_layers(Manifest.load(Path(folder)), source)
    return WeightsCache.open(folder, layers=layers, text=text)


def card_example(folder: Path) -> Pair | None:
    """A pair to draw on the card of a cache that holds no texts, out of the data sets that its manifest names.

    One whose answers the picture shows whole, if there is one near the beginning. None where the cache has its own
    texts, or none can be found.
    """
    first: Pair | None = None
    with WeightsCache.open(folder, text=False) as cache:
        if cache.manifest.include_text:
            return None
        for source in cache.manifest.sources:
            with suppress(DataError, KeyError):
                for item in islice(load(resolve(source["name"], source.get("split"))), _LOOKED_AT):
                    if isinstance(item, Pair) and item.example_hash in cache:
                        if fits(item):
                            return item
                        first = first or item
    return first


def _find_number(cache: WeightsCache, which: str) -> int:
    total = len(cache)
    if not total:
        raise CacheError(f"{cache.folder} holds no pairs yet; run twdpo annotate first")
    if which == "random":
        return random.randrange(total)
    if which.isdecimal() and len(which) < _HASH_DIGITS:
        if int(which) >= total:
            raise UsageError(f"--example {which}: the cache holds {total} pairs, 0 to {total - 1}")
        return int(which)
    found = cache.numbers(which)
    if not found:
        raise UsageError(f"--example {which}: no pair of the cache has a hash that begins so")
    if len(found) > 1:
        raise UsageError(f"--example {which}: {len(found)} pairs have a hash that begins so; give more of its digits")
    return found[0]


def _find_pair(cache: WeightsCache, row: WeightRow, number: int, dataset: str | None, split: str | None) -> Pair | None:
    """The row's texts; None where they are nowhere. Raises DataError or UsageError where `dataset` cannot be read."""
    if row.prompt is not None and row.chosen_text is not None and row.rejected_text is not None:
        prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
        return Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text)
    if dataset is not None:
        return _search(resolve(dataset, split), row.example_hash, number)
    for source in cache.manifest.sources:
        with suppress(DataError, UsageError, KeyError):
            found = _search(resolve(source["name"], source.get("split")), row.example_hash, number)
            if found is not None:
                return found
    return None


def _search(source: Source, example_hash: str, near: int) -> Pair | None:
    """The pair with that hash, looked for from row `near` on: where a data set was judged as it is, it is not far."""
    stream = load(source)
    ranges = ((near, stream.rows_from(near)), (0, islice(stream.rows_from(0), near)))
    for first, rows in ranges:
        for index, row in enumerate(rows, start=first):
            item = parse_row(row, index)
            if isinstance(item, Pair) and item.example_hash == example_hash:
                return item
    return None
