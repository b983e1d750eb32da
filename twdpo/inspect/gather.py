"""Pairs to look at: drawn from a cache, their texts joined in one pass over the data set they came from.

Memory grows with the pairs that are drawn, not with the cache or the data set. Not for: one pair (`examples.py`), or
what is shown of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from twdpo.errors import CacheError, DataError, UsageError
from twdpo.inspect.examples import Example
from twdpo.preferences import Message, Pair, load, resolve
from twdpo.weights_cache import WeightRow, WeightsCache

#: Pairs of the data set between two reports of progress.
_REPORTED = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Pairs drawn from a cache, in cache order. numbers: int64[n], their 0-based places in it."""

    numbers: npt.NDArray[np.int64]
    examples: tuple[Example, ...]

    @property
    def without_text(self) -> int:
        """How many have no text."""
        return sum(example.pair is None for example in self.examples)


def draw(
    cache: WeightsCache,
    count: int,
    *,
    seed: int = 0,
    dataset: str | None = None,
    split: str | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> Drawn:
    """Draw `count` pairs of `cache` evenly at random, all where it holds no more; the same seed draws the same ones.

    Texts come from the cache where it holds them, else from `dataset`, else from the sources in its manifest. Where
    none are found, or the sources cannot be read, pairs come without; a `dataset` that cannot be read raises DataError.
    `progress` is called with a task, how much of it is done and how much there is. Raises CacheError where the cache
    holds no pairs, UsageError for a count below 1, CacheCorrupt.
    """
    if count < 1:
        raise UsageError(f"--examples {count}: give at least 1")
    if split is not None and dataset is None:
        raise UsageError(f"--split {split} is of no data set; name it with --dataset")
    total = len(cache)
    if not total:
        raise CacheError(f"{cache.folder} holds no pairs yet; run twdpo annotate first")
    numbers = np.sort(np.random.default_rng(seed).permutation(total)[:count])
    report = progress or (lambda _task, _done, _total: None)
    rows: list[WeightRow] = []
    for row in cache.rows_at(numbers):
        rows.append(row)
        report("reading weights", len(rows), len(numbers))
    pairs = {row.example_hash: pair for row in rows if (pair := own_pair(row)) is not None}
    if dataset is not None or len(pairs) < len(rows):
        wanted = [row.example_hash for row in rows if dataset is not None or row.example_hash not in pairs]
        pairs |= find_pairs(cache, wanted, dataset=dataset, split=split, progress=report)
    examples = tuple(Example(row=row, pair=pairs.get(row.example_hash)) for row in rows)
    return Drawn(numbers=numbers, examples=examples)


def own_pair(row: WeightRow) -> Pair | None:
    """The pair of a row that carries its texts."""
    if row.prompt is None or row.chosen_text is None or row.rejected_text is None:
        return None
    prompt = tuple(Message(role=role, content=content) for role, content in row.prompt)
    return Pair(prompt=prompt, chosen=row.chosen_text, rejected=row.rejected_text)


def find_pairs(
    cache: WeightsCache,
    hashes: Sequence[str],
    *,
    dataset: str | None = None,
    split: str | None = None,
    progress: Callable[[str, int, int | None], None] | None = None,
) -> dict[str, Pair]:
    """The pairs of `hashes`, as far as they are found in `dataset` or else in the sources that the manifest names.

    One pass, no further than to the last of them. Raises DataError where `dataset` is given and cannot be read.
    """
    left, found = set(hashes), dict[str, Pair]()
    sources: Sequence[tuple[str, str | None]] = (
        [(dataset, split)] if dataset else [(s["name"], s.get("split")) for s in cache.manifest.sources if "name" in s]
    )
    for name, part in sources:
        try:
            for pair in _pairs_of(name, part, progress):
                key = pair.example_hash
                if key in left:
                    left.discard(key)
                    found[key] = pair
                    if not left:
                        return found
        except DataError:
            if dataset:
                raise
    return found


def _pairs_of(name: str, split: str | None, progress: Callable[[str, int, int | None], None] | None) -> Iterator[Pair]:
    stream = load(resolve(name, split))
    for number, item in enumerate(stream):
        if progress and number % _REPORTED == 0:
            progress("finding texts", number, stream.total)
        if isinstance(item, Pair):
            yield item
