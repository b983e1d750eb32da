"""One pair of a cache with its texts: found by hash, number or chance, and made ready to look at.

Not for: how it is drawn (`terminal.py`).
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import RenderableType

from twdpo.errors import CacheError, DataError, UsageError
from twdpo.inspect.terminal import legend, pair_view, shaded_text
from twdpo.preferences import Message, Pair, load, resolve
from twdpo.weights_cache import WeightRow, WeightsCache
from twdpo.weights_cache.card import fits
from twdpo.weights_cache.picture import visible
from twdpo.weights_cache.statistics import effective_tokens

#: Rows of a data set looked at for a pair to draw.
_LOOKED_AT = 4096
#: Heaviest tokens named under an answer.
_HEAVIEST = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A row of the cache and its pair; `pair` is None where its texts cannot be found."""

    row: WeightRow
    pair: Pair | None


def find_example(cache: WeightsCache, which: str, *, dataset: str | None = None) -> Example:
    """The pair that `which` names: a hash or its beginning, a 0-based number in cache order, or `random`.

    Texts come from the cache where it holds them, else from `dataset` or the sources in the manifest.
    Raises UsageError where there is no such pair.
    """
    row = _find_row(cache, which)
    if row.prompt is not None and row.chosen_text is not None and row.rejected_text is not None:
        prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
        return Example(row=row, pair=Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text))
    sources = (
        [(dataset, None)] if dataset else [(s["name"], s.get("split")) for s in cache.manifest.sources if "name" in s]
    )
    for name, split in sources:
        try:
            for item in load(resolve(name, split)):
                if isinstance(item, Pair) and item.example_hash == row.example_hash:
                    return Example(row=row, pair=item)
        except DataError:
            if dataset:
                raise
    return Example(row=row, pair=None)


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


def _find_row(cache: WeightsCache, which: str) -> WeightRow:
    if not len(cache):
        raise CacheError("the cache holds no pairs yet; run twdpo annotate first")
    if which == "random" or (which.isdecimal() and len(which) < 8):
        number = random.randrange(len(cache)) if which == "random" else int(which)
        if number >= len(cache):
            raise UsageError(f"--example {number}: the cache holds {len(cache)} pairs, 0 to {len(cache) - 1}")
        return next(islice(cache.rows(), number, None))
    for row in cache.rows():
        if row.example_hash.startswith(which.lower()):
            return row
    raise UsageError(f"--example {which}: no pair of the cache has a hash that begins so")


def example_view(example: Example, layer: int, *, color: bool = True) -> RenderableType:
    """The pair side by side, shaded by the weights of `layer`, with what the judge thought of it."""
    row = example.row
    if example.pair is None:
        raise CacheError(
            f"the texts of {row.example_hash} are not in the cache and its data set cannot be read; "
            "pass it with --dataset, or annotate with --include-text"
        )
    if layer not in row.chosen.weights:
        raise UsageError(f"--layer {layer} is not in the cache, which holds {', '.join(map(str, row.chosen.weights))}")
    texts, notes = [], []
    for answer, side in ((example.pair.chosen, row.chosen), (example.pair.rejected, row.rejected)):
        weights = side.weights[layer]
        texts.append(shaded_text(answer, weights, side.starts, side.ends, color=color))
        heaviest = np.argsort(-weights, kind="stable")[:_HEAVIEST]
        named = ", ".join(
            f"{visible(answer[side.starts[i] : side.ends[i]]).strip()!r} {weights[i]:.1f}" for i in heaviest
        )
        notes.append(f"{len(weights)} tokens, effective {effective_tokens(weights):.0f}; heaviest: {named}")
    title = (
        f"{row.example_hash}  layer {layer}  P(chosen) {row.judge_prob_cr:.2f} when first, "
        f"{row.judge_prob_rc:.2f} when second{'  truncated' if row.truncated else ''}"
    )
    question = "\n\n".join(f"{m.role}: {m.content}" for m in example.pair.prompt)
    view = pair_view(title, question, texts[0], texts[1], notes=(notes[0], notes[1]))
    from rich.console import Group

    return Group(view, legend(color=color))
